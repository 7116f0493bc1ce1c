"""Mutual self-attention beside explicit maps, where it acts, and over a source of one row."""

from dataclasses import replace

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.control import source_roles
from palimpsest.pipelines.attention.hooks import QKV, ROLES, Site, attend
from palimpsest.pipelines.attention.masactrl import MasaCtrl
from palimpsest.pipelines.attention.one_row import over_one_row
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.unit.analytic import distance, moment, picture
from palimpsest.tests.unit.maps import attention, attention_maps, look

PIXELS, CHANNELS, STEPS, LAYERS = 9, 16, 10, 16
SITE = Site("self", 12, "cond", PIXELS, layers=LAYERS)
OPEN = moment(5, STEPS)

#: Another order of float64 operations.
IDENTITY = 1e-14


def qkv(rows=1, seed=0):
    return QKV(*(2 * picture(rows, PIXELS, CHANNELS, seed=seed + i) for i in range(3)))


def rows_of(whole, row):
    return QKV(*(t[row : row + 1] for t in whole))


def controlled(control, target, source, heads, at=OPEN, site=SITE):
    """[uncond, cond] of the target, given [uncond, cond] of the source: record, then inject."""
    bank = Bank(control)
    bank.begin(at)
    for row, role in enumerate(("uncond", "cond")):
        if role in source_roles(control):
            bank.record(site._replace(role=role), rows_of(source, row))
    return attend(
        target, site, ["uncond", "cond"], bank.inject, lambda term: attention(term, heads)
    )


@pytest.mark.parametrize("heads", [1, 4])
def test_every_branch_looks_with_its_own_queries_into_the_sources_own_row(heads):
    target, source = qkv(2), qkv(2, seed=5)
    expected = look(attention_maps(target.q, source.k, heads), source.v)
    assert distance(controlled(MasaCtrl(), target, source, heads), expected) < IDENTITY


@pytest.mark.parametrize("heads", [1, 4])
def test_the_union_shares_one_softmax_between_source_and_target(heads):
    target, source = qkv(2), qkv(2, seed=5)
    keys, values = (torch.cat([s, t], 1) for s, t in zip(source[1:], target[1:], strict=True))
    expected = look(attention_maps(target.q, keys, heads), values)
    ours = controlled(MasaCtrl(union=True), target, source, heads)
    assert distance(ours, expected) < IDENTITY
    assert distance(ours, controlled(MasaCtrl(), target, source, heads)) > 0.1


def test_of_a_source_whose_rows_are_the_same_one_serves_both_branches():
    target, one = qkv(2), qkv(1, seed=5)
    both = QKV(*(t.expand(2, -1, -1) for t in one))
    control = over_one_row(MasaCtrl())
    assert source_roles(control) == ("cond",)
    expected = controlled(MasaCtrl(), target, both, 4)
    assert torch.equal(controlled(control, target, both, 4), expected)


@pytest.mark.parametrize(("steps", "first"), [(50, 4), (100, 8), (25, 2), (10, 1)])
def test_by_default_it_begins_at_the_published_step(steps, first):
    active = [MasaCtrl().active(moment(step, steps)) for step in range(steps)]
    assert active == [step >= first for step in range(steps)]


@pytest.mark.parametrize(("layers", "first"), [(16, 10), (70, 44), (7, 5), (3, 2)])
def test_by_default_it_begins_at_the_published_layer_of_sd1_and_there_in_others(layers, first):
    sites = [Site("self", layer, "cond", layers=layers) for layer in range(layers)]
    assert [MasaCtrl().reads(site, OPEN) for site in sites] == [n >= first for n in range(layers)]


@pytest.mark.parametrize(("part", "inside"), [((0.28, 0.58), range(14, 29)), ((0.5, 0.5), [])])
def test_a_part_of_the_steps_or_of_the_layers_has_its_start_and_not_its_end(part, inside):
    by_steps, by_layers = MasaCtrl(steps=part), MasaCtrl(layers=part)
    site = Site("self", 49, "cond", layers=50)
    for n in range(50):
        assert by_steps.reads(site, moment(n, 50)) == (n in inside)
        assert by_layers.reads(site._replace(layer=n), moment(49, 50)) == (n in inside)


@pytest.mark.parametrize("kind", ["cross", "features"])
def test_nothing_but_where_the_picture_looks_at_itself_is_touched(kind):
    assert not MasaCtrl().reads(SITE._replace(kind=kind), OPEN)


def test_queries_of_the_source_are_not_kept():
    own = qkv()
    kept = MasaCtrl().kept(SITE, own, OPEN)
    assert kept.q is None and kept.k is own.k and kept.v is own.v


@pytest.mark.parametrize("name", ["steps", "layers"])
@pytest.mark.parametrize("part", [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (float("nan"), 1.0)])
def test_a_part_that_is_none_is_refused(name, part):
    with pytest.raises(PalimpsestError, match=f"MasaCtrl's {name}: .* two rising fractions"):
        replace(MasaCtrl(), **{name: part})


def test_each_role_reads_the_row_of_its_own():
    assert [MasaCtrl().source_role(role) for role in ROLES] == list(ROLES)
