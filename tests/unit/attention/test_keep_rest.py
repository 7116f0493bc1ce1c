"""Keys and values of what is not edited are the source's, and so is it after every step."""

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import QKV, Site, attend
from palimpsest.pipelines.attention.keep_rest import KeepRest
from palimpsest.pipelines.attention.things import Things
from palimpsest.pipelines.attention.watch import begun, within
from palimpsest.pipelines.attention.word_maps import columns_of
from palimpsest.pipelines.rows import Rows
from palimpsest.tests.unit.analytic import distance, moment, picture
from palimpsest.tests.unit.maps import attention

SIZE, CHANNELS, HEADS, TEXT, STEPS = (6, 6), 16, 4, 5, 10
SELF = Site("self", 3, "cond", 36, layers=16, heads=HEADS)
COARSE = SELF._replace(tokens=9)
JOINT = Site("joint", 5, "cond", TEXT + 9, TEXT, layers=20, heads=HEADS)

#: Where the edit is: one cell, which makes a whole place of a coarser layer.
EDITED = torch.zeros(1, 1, *SIZE)
EDITED[..., 3, 2] = 1
INSIDE = {SELF: [3 * 6 + 2], COARSE: [1 * 3 + 1], JOINT: [TEXT + 4]}
sites = pytest.mark.parametrize("site", INSIDE, ids=["self", "coarser", "joint"])


def qkv(site, rows=1, seed=0):
    return QKV(*(2 * picture(rows, site.tokens, CHANNELS, seed=seed + i) for i in range(3)))


def edited_under(bank, site, target, source, step=0):
    bank.begin(moment(step, STEPS))
    bank.record(site, source)
    return attend(target, site, ["cond"], bank.inject, lambda term: attention(term, HEADS))


def bank_of(things):
    beginning = begun(KeepRest(things), SIZE)
    return Bank(beginning.control, watches=beginning.watches, leaves=False)


@sites
def test_keys_and_values_outside_of_the_edit_are_the_sources(site):
    target, source = qkv(site, 2), qkv(site, 2, seed=5)
    own = [n for n in range(site.tokens) if n in INSIDE[site] or n < site.text]
    k, v = (s.clone() for s in source[1:])
    k[:, own], v[:, own] = target.k[:, own], target.v[:, own]
    found = edited_under(bank_of(Things(region=EDITED)), site, target, source)
    assert distance(found, attention((target.q, k, v), HEADS)) < 1e-12


@sites
def test_what_the_target_is_outside_of_the_edit_is_seen_by_no_one(site):
    target, source = qkv(site), qkv(site, seed=5)
    inside = [*range(site.text), *INSIDE[site]]
    other = QKV(*(t.clone() for t in target))
    for mine, theirs in zip(other, qkv(site, seed=9), strict=True):
        rest = [n for n in range(site.tokens) if n not in inside]
        mine[:, rest] = theirs[:, rest]
    found = [
        edited_under(bank_of(Things(region=EDITED)), site, own, source)[:, inside]
        for own in (target, other)
    ]
    assert torch.equal(*found)


def test_after_a_step_the_source_stands_around_the_edit():
    bank = bank_of(Things(region=EDITED))
    edited_under(bank, SELF, qkv(SELF), qkv(SELF, seed=5))
    chain, target = (picture(1, 4, *SIZE, seed=seed) for seed in (1, 2))
    (watch,) = bank.watches
    rows = watch(Rows(source=chain, target=target), chain, moment(0, STEPS))
    inside = EDITED.bool().expand_as(chain)
    assert torch.equal(rows.target[inside], (chain + (target - chain))[inside])
    assert torch.equal(rows.target[~inside], chain[~inside])
    apart = within(bank.watches, target)
    assert torch.equal(apart, target * EDITED.to(target))


def test_both_places_of_a_thing_that_moves_are_edited():
    moved = torch.zeros_like(EDITED)
    moved[..., 0, 0] = 1
    bank = bank_of(Things(region=EDITED, target_region=moved))
    edited_under(bank, SELF, qkv(SELF), qkv(SELF, seed=5))
    assert torch.equal(bank.watches[0].cells, EDITED + moved)


def test_until_its_words_were_seen_nothing_is_kept():
    columns = tuple(columns_of([(2,)], TEXT)[None] for _ in range(2))
    bank, site = bank_of(Things(columns, 0.5)), JOINT
    target, source = qkv(site), qkv(site, seed=5)
    free = attention(target, HEADS)
    assert torch.equal(edited_under(bank, site, target, source), free)
    assert bank.watches[0].cells is None
    chain = picture(1, 4, *SIZE)
    rows = Rows(source=chain, target=2 * chain)
    assert bank.watches[0](rows, chain, moment(0, STEPS)) is rows
    found = edited_under(bank, site, target, source, step=1)
    assert distance(found, free) > 0.01
    assert 0 < bank.watches[0].cells.mean() < 1
