"""Word maps by indicator columns beside explicit maps, and where they are looked for."""

import math
from dataclasses import dataclass

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import QKV, Site
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.word_maps import (
    Gathered,
    columns_at,
    columns_of,
    grid_of,
    looked_at,
    source_map,
    target_map,
)
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.unit.analytic import distance, moment, picture
from palimpsest.tests.unit.maps import Refine, Replace, Reweight, attention_maps, cross_alpha
from palimpsest.tests.unit.prompts import prompt

TOKENS, PIXELS, CHANNELS, STEPS = 12, 9, 16, 10
CROSS = Site("cross", 0, "cond", depths=(2,), heads=4)


def qkv(rows=1, seed=0, dtype=torch.float64, keys=TOKENS):
    sizes = (PIXELS, keys, keys)
    drawn = (2 * picture(rows, n, CHANNELS, seed=seed + i) for i, n in enumerate(sizes))
    return QKV(*(t.to(dtype) for t in drawn))


def summed(maps, groups):
    """[B, P, W] mean over the heads of explicit maps, of the tokens of every group together."""
    return torch.stack([maps[..., list(group)].sum(-1).mean(1) for group in groups], -1)


GROUPS = [(2,), (1, 4, 5), ()]


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "exact"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)]
)
def test_a_word_map_is_the_sum_of_its_tokens_columns_and_the_mean_of_the_heads(heads, dtype, exact):
    own = qkv(2, dtype=dtype)
    term = own._replace(v=columns_of(GROUPS, TOKENS).expand(2, -1, -1))
    found = target_map([term], CROSS._replace(heads=heads), 2)
    finest = torch.promote_types(dtype, torch.float32)
    expected = summed(attention_maps(own.q.to(finest), own.k.to(finest), heads), GROUPS)
    assert found.dtype == finest
    assert distance(found, expected) < exact


@dataclass
class Look:
    """A watch that bounds nothing."""

    columns: torch.Tensor
    cells: None = None
    seen: torch.Tensor | None = None

    def see(self, own, source, attended, site, at):
        self.seen = target_map(attended(columns_at(self.columns, own.k, site)), site, len(own.q))


@pytest.mark.parametrize("window", [0.4, 1.0], ids=["closes", "stays open"])
@pytest.mark.parametrize("mode", ["replace", "refine"])
def test_the_map_of_an_edited_attention_is_that_of_the_published_controller(mode, window):
    texts = ("a red cat on grass", "a blue tiger on grass")
    if mode == "refine":
        texts = ("a red cat", "a big red cat with a hat")
    described = [prompt(text, TOKENS, tiger=2) for text in texts]
    word = described[1].words[1].text
    control = rewrite_prompt(*described, mode=mode, cross_window=(0.0, window), weights={word: 3.0})
    alpha = cross_alpha(STEPS, TOKENS, window)
    rewrite = Replace(control.alignment.mapping)
    if mode == "refine":
        origin = control.alignment.mapping.argmax(0)
        rewrite = Refine(torch.where(control.alignment.aligned == 0, -1, origin).tolist())
    rewrite = Reweight(control.weights, rewrite)
    columns = columns_of(GROUPS, TOKENS)
    for step in range(STEPS):
        target, source = qkv(seed=10 * step), qkv(seed=10 * step + 5)
        look = Look(columns)
        bank = Bank(control, at=moment(step, STEPS), watches=(look,))
        bank.record(CROSS, source)
        bank.inject(CROSS, target)
        own, other = (attention_maps(t.q, t.k, CROSS.heads) for t in (target, source))
        edited = rewrite(other, own) * alpha[step] + own * (1 - alpha[step])
        assert distance(look.seen, summed(edited, GROUPS)) < 1e-12


def test_a_prompt_that_was_repeated_to_fill_a_batch_says_what_it_says_once():
    once = qkv(2)
    twice = QKV(once.q, once.k.repeat(1, 2, 1), once.v)
    columns = columns_of(GROUPS, TOKENS)
    maps = [source_map(t, columns, CROSS) for t in (once, twice)]
    assert distance(*maps) < 1e-14


SD1 = (0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("size", "depths", "layers"),
    [
        ((64, 64), SD1, [4, 5, 7, 8, 9]),  # SD 1.x and 2.x, as published
        ((64, 48), SD1, [4, 5, 7, 8, 9]),
        ((32, 32), SD1, [2, 3, 10, 11, 12]),  # at 256 pixels
        ((16, 16), SD1, [0, 1, 13, 14, 15]),
        ((8, 8), SD1, [0, 1, 13, 14, 15]),  # none has the places: the finest
        ((128, 128), (1, 1, 2, 2, 2, 2, 1), [2, 3, 4, 5]),  # SDXL in short
        ((16, 16), (0, 1, 1, 0), [0, 3]),  # the embedded model
        ((64, 64), (0, 0), [0, 1]),
        ((256, 256), (1, 3), [0]),  # equally near: the finer
        ((256, 256), (4, 3), [1]),
        ((11, 13), (0, 1), [0]),
        ((22, 26), (0, 1), [1]),
    ],
)
def test_words_are_looked_for_at_a_quarter_of_the_side_if_it_has_the_places(size, depths, layers):
    sites = [
        Site("cross", n, "cond", math.prod(-(-side // 2**depth) for side in size), depths=depths)
        for n, depth in enumerate(depths)
    ]
    assert [n for n, site in enumerate(sites) if looked_at(site)] == layers
    assert not any(looked_at(site._replace(kind="self")) for site in sites)


@pytest.mark.parametrize(
    ("places", "size", "grid"),
    [
        (256, (64, 64), (16, 16)),
        (384, (64, 96), (16, 24)),
        (63, (13, 17), (7, 9)),
        (20, (13, 17), (4, 5)),
        (1, (13, 17), (1, 1)),
        (221, (13, 17), (13, 17)),
        (3, (1, 5), (1, 3)),
    ],
)
def test_a_layer_lies_over_the_latent_as_often_halved(places, size, grid):
    assert grid_of(places, size) == grid


def test_places_that_no_halving_leads_to_are_refused():
    with pytest.raises(PalimpsestError, match="layers of 100 places for a latent of 64 x 64 cells"):
        grid_of(100, (64, 64))


def test_maps_of_layers_of_one_size_are_summed_and_lie_as_the_picture_does():
    gathered, size = Gathered((4, 6)), (2, 3)
    maps = [picture(2, 6, 3, seed=n) for n in range(3)]
    for layer in maps:
        gathered.add(layer)
    expected = sum(maps).transpose(1, 2).reshape(2, 3, *size)
    assert torch.equal(gathered.total, expected)
    assert math.prod(size) == maps[0].shape[1]


def test_coarser_layers_are_enlarged_to_the_finest():
    gathered = Gathered((4, 4))
    fine, coarse = picture(1, 4, 1), picture(1, 1, 1, seed=1)
    gathered.add(coarse)
    gathered.add(fine)
    assert torch.equal(gathered.total, fine.view(1, 1, 2, 2) + coarse.view(1, 1, 1, 1))
