"""LocalBlend beside its published form, restated with explicit maps."""

from dataclasses import replace

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import QKV, Site
from palimpsest.pipelines.attention.local_blend import LocalBlend, above, blend_columns
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.stack import stacked
from palimpsest.pipelines.attention.watch import begun
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.rows import Rows
from palimpsest.tests.unit.analytic import moment, picture
from palimpsest.tests.unit.maps import Refine, attention_maps, cross_alpha
from palimpsest.tests.unit.prompts import prompt
from torch.nn import functional

TOKENS, CHANNELS, STEPS, SIZE = 12, 16, 10, (48, 64)
DEPTHS = (1, 2, 2, 1)
TEXTS = ("a red cat on grass", "a red cat with a hat on grass")


def described():
    return [prompt(text, TOKENS) for text in TEXTS]


def blend(words=(["cat"], ["hat"]), out=(), **settings):
    columns = [
        blend_columns([p], own, out, role=role)
        for p, own, role in zip(described(), words, ("source prompt", "target prompt"), strict=True)
    ]
    return LocalBlend(*columns, **settings)


def site(layer):
    places = (SIZE[0] >> DEPTHS[layer]) * (SIZE[1] >> DEPTHS[layer])
    return Site("cross", layer, "cond", places, layers=4, depths=DEPTHS, heads=4)


def qkv(layer, seed, rows=1):
    sizes = (site(layer).tokens, TOKENS, TOKENS)
    return QKV(*(2 * picture(rows, n, CHANNELS, seed=seed + i) for i, n in enumerate(sizes)))


def walk(control, steps, rows=1):
    """The masks of every step of an edit whose attention is drawn at random."""
    bank = Bank(control, watches=begun(control, SIZE).watches)
    masks = []
    for step in range(steps):
        bank.begin(moment(step, STEPS))
        for layer in range(4):
            bank.record(site(layer), qkv(layer, 100 * step + 10 * layer))
        for layer in range(4):
            bank.inject(site(layer), qkv(layer, 100 * step + 10 * layer + 5, rows))
        masks.append(bank.bounds)
    return masks, bank


class Published:
    """Maps of both rows kept, edited and summed over the steps; masks as they were released."""

    def __init__(self, rewrite, alpha, words, out=None, thresholds=(0.3, 0.3), start=0.2):
        self.rewrite, self.alpha, self.start = rewrite, alpha, start
        self.words, self.out, self.thresholds = words, out, thresholds
        self.store = None

    def step(self, step):
        maps = []
        for layer in (1, 2):  # those of a quarter of the side
            source, target = (qkv(layer, 100 * step + 10 * layer + n) for n in (0, 5))
            a_s, a_t = (attention_maps(t.q, t.k, 4) for t in (source, target))
            a_t = self.rewrite(a_s, a_t) * self.alpha[step] + a_t * (1 - self.alpha[step])
            maps.append(torch.cat([a_s, a_t]))
        if self.store is not None:
            maps = [a + b for a, b in zip(self.store, maps, strict=True)]
        self.store = maps
        if step + 1 <= int(self.start * STEPS):
            return None
        mask = self.mask(self.words, self.thresholds[0], pool=True)
        if self.out is not None:
            mask = mask & ~self.mask(self.out, self.thresholds[1], pool=False)
        return mask[1:].double()

    def mask(self, words, threshold, pool):
        maps = torch.stack(self.store, 1).flatten(1, 2)  # [2, layers * heads, P, S]
        chosen = torch.zeros(2, 1, 1, TOKENS, dtype=torch.float64)
        for row, positions in enumerate(words):
            chosen[row, ..., list(positions)] = 1
        maps = (maps * chosen).sum(-1).mean(1).view(2, 1, SIZE[0] // 4, SIZE[1] // 4)
        if pool:
            maps = functional.max_pool2d(maps, (3, 3), (1, 1), padding=(1, 1))
        mask = functional.interpolate(maps, size=SIZE)
        mask = mask / mask.max(2, keepdim=True)[0].max(3, keepdim=True)[0]
        mask = mask > threshold
        return mask[:1] | mask


@pytest.mark.parametrize("out", [(), ["grass"]], ids=["", "leave out"])
@pytest.mark.parametrize("thresholds", [(0.3, 0.3), (0.75, 0.9), (0.9, 0.75)])
@pytest.mark.parametrize("start", [0.0, 0.2, 0.55])
def test_masks_are_the_published_ones_cell_by_cell(out, thresholds, start):
    source, target = described()
    rewrite = rewrite_prompt(source, target, mode="refine", cross_window=(0.0, 0.4))
    own = blend(out=out, threshold=thresholds[0], out_threshold=thresholds[1], start=start)
    origin = rewrite.alignment.mapping.argmax(0)
    mapper = torch.where(rewrite.alignment.aligned == 0, -1, origin).tolist()
    published = Published(
        Refine(mapper),
        cross_alpha(STEPS, TOKENS, 0.4),
        ((3,), (6,)),
        ((5,), (8,)) if out else None,
        thresholds,
        start,
    )
    masks, _ = walk(stacked([rewrite, own]), STEPS)
    shares = []
    for step, mask in enumerate(masks):
        expected = published.step(step)
        assert (mask is None) == (expected is None) == (step < int(start * STEPS))
        if mask is not None:
            assert torch.equal(mask.double(), expected)
            shares.append(float(mask.mean()))
    assert thresholds[0] < 0.5 or 0 < sum(shares) < len(shares)


def after(control, masks_of=STEPS):
    """What the blend makes of rows of ones over a source of zeros and a chain of minus ones."""
    _, bank = walk(control, masks_of)
    ones = torch.ones(1, 2, *SIZE)
    rows = Rows(ones, torch.zeros_like(ones))
    return bank.watches[0](rows, -ones, bank.at), bank.bounds


def test_outside_the_mask_the_source_row_is_put_back_and_nothing_else_is_touched():
    moved, mask = after(blend(threshold=0.8))
    assert torch.equal(moved.target, mask.expand(1, 2, *SIZE))
    assert torch.equal(moved.source, torch.zeros(1, 2, *SIZE))
    assert 0 < mask.mean() < 1


def test_before_its_start_nothing_is_put_back():
    moved, mask = after(blend(threshold=0.8), masks_of=2)
    assert mask is None and torch.equal(moved.target, torch.ones(1, 2, *SIZE))


REGION = (torch.arange(SIZE[1]) < 7).double().expand(1, 1, *SIZE)


def test_a_mask_of_the_users_joins_or_replaces_the_found_one():
    _, found = after(blend(threshold=0.8))
    own = REGION > 0
    for join, expected in (
        ("intersection", (found > 0) & own),
        ("union", (found > 0) | own),
        ("replace", own),
    ):
        _, mask = after(blend(threshold=0.8, region=REGION, join=join))
        assert torch.equal(mask.double(), expected.double()), join


def test_a_mask_that_replaces_looks_for_no_words_and_puts_back_the_chain():
    control = blend(region=REGION, join="replace")
    assert not control.active(moment(5, STEPS)) and not control.reads(site(1), moment(5, STEPS))
    moved, _ = after(control)
    assert torch.equal(moved.target, (2 * REGION - 1).expand(1, 2, *SIZE).float())


def test_every_picture_of_a_batch_has_its_own_mask():
    masks, _ = walk(blend(threshold=0.8), 5, rows=3)
    assert masks[-1].shape == (3, 1, *SIZE)
    assert not torch.equal(masks[-1][0], masks[-1][1])


def test_it_reads_the_conditional_row_alone_and_leaves_its_attention_alone():
    control, own = blend(), qkv(1, 0)
    at = moment(0, STEPS)
    assert control.source_role("uncond") is None and control.source_role("cond") == "cond"
    assert [control.reads(site(layer), at) for layer in range(4)] == [False, True, True, False]
    assert control.kept(site(1), own, at) == QKV(own.q, own.k, None)
    assert control.terms(own, own, site(1), at) is None
    assert all(control.active(moment(step, STEPS)) for step in range(STEPS))


@pytest.mark.parametrize("name", ["threshold", "out_threshold", "start"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_setting_out_of_range_is_refused(name, value):
    with pytest.raises(PalimpsestError, match=f"LocalBlend's {name} is .* must be 0 to 1"):
        replace(blend(), **{name: value})


@pytest.mark.parametrize("name", ["threshold", "out_threshold", "start"])
def test_its_settings_reach_from_0_to_1(name):
    for value in (0.0, 1.0):
        assert getattr(replace(blend(), **{name: value}), name) == value


def test_every_map_is_cut_at_a_part_of_its_own_largest_value():
    maps = torch.tensor([[1.0, 3, 4], [10, 20, 100]])[:, None, None]
    assert above(maps, 0.5).flatten(1).tolist() == [[False, True, True], [False, False, True]]


def test_without_a_mask_of_the_users_there_is_nothing_to_place():
    control, marked = blend(), blend(region=REGION)
    assert control.masks == () and marked.masks == (REGION,)
    assert control.placed(None) is control
    halved = marked.placed(lambda region: region[..., ::2])
    assert torch.equal(halved.region, REGION[..., ::2]) and halved.join == marked.join


# -- words ---------------------------------------------------------------------------------------


def test_a_column_marks_every_token_of_every_word():
    found = blend_columns(
        [prompt("a tiger and a Tiger on grass", TOKENS, tiger=2)],
        ["tiger", "on grass"],
        ["and"],
        role="source prompt",
    )
    assert found[0, :, 0].nonzero().flatten().tolist() == [2, 3, 6, 7, 8, 9]
    assert found[0, :, 1].nonzero().flatten().tolist() == [4]


def test_a_word_that_is_in_no_prompt_is_refused_with_what_is_there():
    with pytest.raises(PalimpsestError, match="'dog' is not in the source prompt 'a red cat on gr"):
        blend_columns(described()[:1], ["cat", "dog"], [], role="source prompt")


def test_of_several_prompts_each_takes_the_words_that_it_has():
    prompts = [prompt("a cat"), prompt("a very big dog", 90)]
    found = blend_columns(prompts, ["cat", "dog"], ["grass"], role="target prompts")
    assert found.shape == (2, 90, 2)
    assert [row[:, 0].nonzero().flatten().tolist() for row in found] == [[2], [4]]
    assert not found[..., 1].any()


def test_a_word_with_no_attention_at_all_keeps_the_whole_picture():
    """Of a map that is zero everywhere no place exceeds a part of the largest value."""
    own = blend()
    empty = replace(own, source=torch.zeros_like(own.source), target=torch.zeros_like(own.target))
    masks, _ = walk(empty, 5)
    assert torch.equal(masks[-1], torch.zeros(1, 1, *SIZE))
