"""What keeping a source takes, in tensors of the size of its network's largest query."""

from dataclasses import dataclass

import pytest
import torch
from palimpsest.pipelines.attention.hooks import QKV, Site
from palimpsest.pipelines.attention.room import Room
from palimpsest.pipelines.schedule import moment_at
from palimpsest.tests.unit.analytic import geometric

AT = [moment_at(geometric(3), step) for step in range(3)]


@dataclass(frozen=True)
class FromLayer:
    """Reads from a layer on that is higher with every step."""

    def source_role(self, role):
        return "cond"

    def reads(self, site, at):
        return site.layer >= at.step


def place(layer):
    return Site("self", layer, "cond", 4)


def test_of_a_step_counts_what_it_reads_of_what_was_seen():
    room = Room()
    assert room.of(FromLayer(), AT[0]) == 0
    room.see(torch.zeros(1, 4, 8))
    for layer, keys in ((0, 4), (1, 2), (2, 1)):
        room.keep(place(layer), QKV(torch.zeros(1, 4, 8), None, torch.zeros(1, keys, 8)))
    assert [room.of(FromLayer(), at) for at in AT] == [4.75, 2.75, 1.25]
    room.keep(place(2), QKV(None, None, torch.zeros(1, 2, 8)))  # as it was last
    assert room.of(FromLayer(), AT[2]) == 0.5


@pytest.mark.parametrize("first", ["seen", "kept"])
def test_the_unit_is_the_largest_tensor_of_all(first):
    room, site = Room(), place(2)
    looks = {
        "seen": lambda: room.see(torch.zeros(1, 4, 8)),
        "kept": lambda: room.keep(site, torch.zeros(1, 8, 4, 4)),
    }
    for look in sorted(looks, key=lambda name: name != first):
        looks[look]()
    assert room.largest == 512 and room.of(FromLayer(), AT[0]) == 1
    room.see(torch.zeros(1, 2, 8))
    assert room.largest == 512
    room.see(torch.zeros(1, 16, 16))
    assert room.of(FromLayer(), AT[0]) == 0.5
