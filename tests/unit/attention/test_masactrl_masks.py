"""MasaCtrl with masks beside explicit maps that are cut: inside from inside alone, and outside."""

from dataclasses import replace

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import QKV, Site, attend
from palimpsest.pipelines.attention.masactrl import MasaCtrl
from palimpsest.pipelines.attention.masked import placed
from palimpsest.pipelines.attention.stack import stacked
from palimpsest.pipelines.attention.things import Things
from palimpsest.pipelines.attention.watch import begun
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.unit.analytic import distance, moment, picture
from palimpsest.tests.unit.maps import attention, attention_maps, look

#: Cells of the latent, and layers of all of them and of a quarter.
SIZE, GRIDS = (6, 4), ((6, 4), (3, 2))
CHANNELS, HEADS, TOKENS, STEPS = 16, 4, 5, 10
ROLES = ["uncond", "cond"]

#: Another order of float64 operations.
IDENTITY = 1e-14

CROSS = Site("cross", 0, "cond", 24, layers=4, depths=(0, 1, 0, 1), heads=HEADS)


def self_site(layer):
    places = GRIDS[layer % 2]
    return CROSS._replace(kind="self", layer=layer, tokens=places[0] * places[1])


def qkv(rows, queries, keys, seed):
    sizes = (queries, keys, keys)
    return QKV(*(2 * picture(rows, n, CHANNELS, seed=seed + i) for i, n in enumerate(sizes)))


def mask(rows, seed):
    return (picture(rows, 1, *SIZE, seed=seed) > 0).float()


def by_maps(target, source, to, of, *, union=False):
    """One row: every place reads the keys that lie on its own side, all where there are none."""
    keys, values, sides = source[1], source[2], of
    if union:
        keys, values = (torch.cat(pair, 1) for pair in zip(source[1:], target[1:], strict=True))
        sides = torch.cat([of, to])
    q, k = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (target[0], keys))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    apart = to[:, None] != sides[None]
    for side in (True, False):
        if not (of == side).any():  # of a side that the source lacks: its other side's looks
            apart[to == side, : len(of)] = False
    return look(scores.masked_fill(apart, -torch.inf).softmax(-1), values)


def on(grid, cells):
    """[P] bool, a mask of the latent's cells in a layer: of every block of cells the first."""
    step = SIZE[0] // grid[0]
    return cells[::step, ::step].flatten() > 0.5


def started(things, **settings):
    control = MasaCtrl(steps=(0.0, 1.0), layers=(0.0, 1.0), things=things, **settings)
    return begun(control, SIZE)


def attended(bank, site, target, source):
    """A whole attention of [uncond, cond] rows, each of which has as many pictures."""
    pictures = len(target.q) // 2
    for i, role in enumerate(ROLES):
        part = QKV(*(t[i * pictures : (i + 1) * pictures] for t in source))
        bank.record(site._replace(role=role), part)
    return attend(target, site, ROLES, bank.inject, lambda term: attention(term, HEADS))


def bank_of(beginning, step=0):
    bank = Bank(beginning.control, None, beginning.watches, beginning.onlookers)
    bank.begin(moment(step, STEPS))
    return bank


@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("rows", [1, 2])
def test_masks_of_the_user_part_the_attention_in_every_layer(rows, layer, union):
    of, to = mask(rows, 1), mask(rows, 2)
    bank = bank_of(started(Things(region=of, target_region=to), union=union))
    site = self_site(layer)
    target, source = (qkv(2 * rows, site.tokens, site.tokens, seed) for seed in (10, 20))
    ours = attended(bank, site, target, source)
    for row in range(2 * rows):
        sides = (on(GRIDS[layer], m[row % rows, 0]) for m in (to, of))
        one, other = (QKV(*(t[row : row + 1] for t in part)) for part in (target, source))
        expected = by_maps(one, other, *sides, union=union)
        assert distance(ours[row : row + 1], expected) < IDENTITY


def test_one_mask_stands_for_both_and_one_picture_for_many_targets():
    of = mask(1, 1)
    site = self_site(0)
    target, source = qkv(3, site.tokens, site.tokens, 10), qkv(1, site.tokens, site.tokens, 20)
    answers = []
    for things in (
        Things(region=of),
        Things(target_region=of),
        Things(region=of, target_region=of),
    ):
        bank = bank_of(started(things))
        bank.record(site, source)
        answers.append(
            attend(target, site, ["cond"], bank.inject, lambda term: attention(term, HEADS))
        )
    side = on(GRIDS[0], of[0, 0])
    for row, answer in enumerate(answers[0]):
        one = QKV(*(t[row : row + 1] for t in target))
        assert distance(answer[None], by_maps(one, source, side, side)) < IDENTITY
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("source", [0.0, 1.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_of_a_side_that_the_source_lacks_looks_come_from_the_other(source, target):
    things = Things(
        region=torch.full((1, 1, *SIZE), source), target_region=torch.full((1, 1, *SIZE), target)
    )
    site = self_site(0)
    rows = [qkv(2, site.tokens, site.tokens, seed) for seed in (10, 20)]
    plain = attended(bank_of(started(None)), site, *rows)
    assert distance(attended(bank_of(started(things)), site, *rows), plain) < IDENTITY


#: Tokens of the words.
WORDS = (
    torch.tensor([0.0, 1, 1, 0, 0])[None, :, None],
    torch.tensor([0.0, 0, 0, 1, 0])[None, :, None],
)


def word_mask(maps, tokens, threshold):
    """[1, 1, h, w] where summed explicit maps, stretched to 0..1, exceed a threshold."""
    one = maps[..., tokens].sum(-1).mean(1).unflatten(-1, SIZE)
    low, high = one.amin(), one.amax()
    return ((one - low) / (high - low) > threshold)[None].float()


@pytest.mark.parametrize("given", [None, "region", "target_region"])
@pytest.mark.parametrize("threshold", [0.1, 0.4])
@pytest.mark.parametrize("pictures", [1, 2])
def test_words_find_the_masks_from_the_steps_before(threshold, given, pictures):
    """In each picture of a batch its own."""
    own = {} if given is None else {given: mask(1, 3)}
    beginning = started(Things(WORDS, threshold, **own))
    site, bank = self_site(2), bank_of(beginning)
    sums = [0.0, 0.0]
    for step in range(3):
        bank.begin(moment(step, STEPS))
        rows = 2 * pictures
        crossed = [qkv(rows, CROSS.tokens, TOKENS, 100 * step + seed) for seed in (10, 20)]
        attended(bank, CROSS, *crossed)
        target, source = (
            qkv(rows, site.tokens, site.tokens, 100 * step + seed) for seed in (30, 40)
        )
        ours = attended(bank, site, target, source)
        for row in range(rows):
            seen = row % pictures
            sides = [torch.ones(site.tokens, dtype=torch.bool)] * 2
            for i, (name, tokens) in enumerate((("target_region", [3]), ("region", [1, 2]))):
                if step:
                    found = word_mask(sums[i][seen : seen + 1], tokens, threshold)
                    sides[i] = on(GRIDS[0], own.get(name, found)[0, 0])
            one, other = (QKV(*(t[row : row + 1] for t in part)) for part in (target, source))
            assert distance(ours[row : row + 1], by_maps(one, other, *sides)) < IDENTITY
        sums = [
            total + attention_maps(part.q[pictures:], part.k[pictures:], HEADS)
            for total, part in zip(sums, crossed, strict=True)
        ]
    assert all(0 < side.float().mean() < 1 for side in sides)


def test_what_is_seen_within_a_step_does_not_depend_on_its_order():
    """A host short of memory runs one branch after the other, in an order of its own."""
    answers = []
    for order in (["cond", "uncond"], ["uncond", "cond"]):
        bank = bank_of(started(Things(WORDS)))
        for step in range(2):
            bank.begin(moment(step, STEPS))
            crossed, site = [qkv(1, 24, TOKENS, 100 * step + s) for s in (10, 20)], self_site(2)
            looked = [qkv(1, 24, 24, 100 * step + s) for s in (30, 40)]
            for role in ROLES:
                bank.record(CROSS._replace(role=role), crossed[1])
                bank.record(site._replace(role=role), looked[1])
            out = {}
            for role in order:
                for place, rows in ((CROSS, crossed), (site, looked)):
                    out[role, place.kind] = attend(
                        rows[0], place, [role], bank.inject, lambda term: attention(term, HEADS)
                    )
        answers.append(out)
    assert answers[0].keys() == answers[1].keys()
    assert all(torch.equal(answers[0][name], answers[1][name]) for name in answers[0])


def test_it_reads_the_words_in_the_prompts_row_alone_and_only_where_no_mask_is_given():
    at, control = moment(0, STEPS), MasaCtrl((0.0, 1.0), things=Things(WORDS))
    assert control.reads(CROSS, at)
    assert not control.reads(CROSS._replace(role="uncond"), at)
    assert not control.reads(CROSS._replace(layer=1, tokens=6), at)
    assert not replace(control, steps=(0.5, 1.0)).reads(CROSS, at)
    both = Things(WORDS, region=mask(1, 1), target_region=mask(1, 2))
    assert not replace(control, things=both).reads(CROSS, at)
    assert replace(control, things=replace(both, target_region=None)).reads(CROSS, at)
    assert not replace(control, things=replace(both, words=None)).reads(CROSS, at)
    kept = control.kept(CROSS, qkv(1, 24, TOKENS, 1), at)
    assert kept.q is not None and kept.k is not None and kept.v is None
    assert control.terms(kept, kept, CROSS, at) is None


def test_masks_are_placed_on_the_cells_of_a_latent_also_in_a_stack():
    pixels, cells = torch.ones(1, 8, 8), mask(1, 1)
    control = MasaCtrl(things=Things(region=pixels))
    whole = stacked([control, MasaCtrl()])
    assert [part.shape for part in whole.masks] == [pixels.shape]
    moved = placed(whole, lambda given: cells if given is pixels else None).controls[0]
    assert moved.things.region is cells and moved.things.target_region is None
    assert moved.masks == (cells,) and MasaCtrl().masks == ()
    assert placed(MasaCtrl(), None) == MasaCtrl()


def test_without_a_thing_it_remembers_nothing():
    assert begun(MasaCtrl(), SIZE) == (MasaCtrl(), (), ())


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_bad_threshold_is_refused(threshold):
    with pytest.raises(PalimpsestError, match="it must be 0 to 1"):
        Things(WORDS, threshold)


def test_a_threshold_reaches_from_0_to_1():
    for threshold in (0.0, 1.0):
        assert Things(WORDS, threshold).threshold == threshold


@pytest.mark.parametrize("differ", ["of", "to"])
def test_pictures_that_share_one_side_of_their_masks_alone_are_parted_one_by_one(differ):
    masks = {"of": mask(1, 1).repeat(2, 1, 1, 1), "to": mask(1, 2).repeat(2, 1, 1, 1)}
    masks[differ] = mask(2, 7)
    bank, site = bank_of(started(Things(region=masks["of"], target_region=masks["to"]))), None
    site = self_site(0)
    target, source = (qkv(4, site.tokens, site.tokens, seed) for seed in (10, 20))
    ours = attended(bank, site, target, source)
    for row in range(4):
        sides = (on(GRIDS[0], masks[name][row % 2, 0]) for name in ("to", "of"))
        one, other = (QKV(*(t[row : row + 1] for t in part)) for part in (target, source))
        assert distance(ours[row : row + 1], by_maps(one, other, *sides)) < IDENTITY


def test_a_thing_without_words_or_masks_is_a_mistake():
    with pytest.raises(ValueError, match="words or a mask"):
        Things()
