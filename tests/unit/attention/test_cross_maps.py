"""Explicit maps of the layers that a loss looks at."""

import math

import pytest
import torch
from palimpsest.pipelines.attention.cross_maps import (
    MOST_LAYERS,
    CrossMaps,
    attention_map,
    paired,
)
from palimpsest.pipelines.attention.hooks import QKV, Site
from palimpsest.pipelines.errors import PalimpsestError


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def qkv(queries, seed=0, channels=6, keys=5, dtype=torch.float32):
    sizes = (queries, keys, keys)
    return QKV(*(drawn(2, n, channels, seed=seed + i).to(dtype) for i, n in enumerate(sizes)))


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_a_map_is_what_attention_mixes_values_by(heads):
    tensors = qkv(9)
    maps = attention_map(tensors, heads)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in tensors)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert maps.shape == (2, heads, 9, 5)
    assert torch.allclose(maps @ v, fused, atol=1e-6)
    width = 6 // heads
    row = torch.tensor([float(q[1, 0, 3] @ k[1, 0, j]) / math.sqrt(width) for j in range(5)])
    assert torch.allclose(maps[1, 0, 3], row.softmax(0), atol=1e-6)


def test_maps_are_made_in_float32():
    assert attention_map(qkv(4, dtype=torch.bfloat16), 2).dtype == torch.float32


def recorded(sizes, cells, kind="cross", role="cond"):
    maps = CrossMaps(cells)
    for layer, size in enumerate(sizes):
        assert maps.record(Site(kind, layer, role, heads=2), qkv(size, seed=layer)) is None
    return maps


def test_a_call_at_another_size_leaves_nothing_of_the_one_before():
    """A guest that shrinks layers at some levels: the last call before `take` is the one meant."""
    maps = CrossMaps(256)
    for sizes in ([64, 16, 64], [64, 36, 64]):
        for layer, n in enumerate(sizes):
            maps.record(Site("cross", layer, "cond", tokens=n, heads=2), qkv(n))
    assert [m.shape[2] for m in maps.take()] == [36]


@pytest.mark.parametrize(
    ("sizes", "cells", "layers"),
    [
        ([4096, 1024, 256, 64, 256, 1024, 4096], 4096, [2, 4]),  # SD 1.x at 512 px: 16 x 16
        ([6144, 1536, 384, 96, 384], 6144, [2, 4]),  # at 512 x 768 px: 16 x 24
        ([4096, 1024, 1024, 4096], 16384, [1, 2]),  # SDXL at 1024 px has nothing below 32 x 32
        ([256, 64, 64, 64, 256], 256, [1, 2, 3]),  # the embedded model: 8 x 8
        ([64, 1024], 4096, [1]),  # of two equally near ones the finer
        ([1000, 62], 4096, [0]),  # 256 is nearer to 1000, by its factor; 241 would not be
    ],
)
def test_the_layers_nearest_to_a_quarter_of_the_side_are_taken(sizes, cells, layers):
    taken = recorded(sizes, cells).take()
    expected = [attention_map(qkv(sizes[i], seed=i), 2) for i in layers]
    assert len(taken) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(taken, expected, strict=True))


def test_of_many_layers_a_few_are_taken_from_the_first_to_the_last():
    taken = recorded([16] * 60, 256).take()
    chosen = [0, 8, 16, 25, 33, 42, 50, 59]
    assert len(chosen) == MOST_LAYERS
    expected = [attention_map(qkv(16, seed=i), 2) for i in chosen]
    assert all(torch.equal(a, b) for a, b in zip(taken, expected, strict=True))


@pytest.mark.parametrize(("kind", "role"), [("self", "cond"), ("cross", "uncond")])
def test_only_the_conditional_cross_attention_is_looked_at(kind, role):
    maps = recorded([64, 16], 256)
    before = len(maps.take())
    maps = recorded([64, 16], 256)
    maps.record(Site(kind, 5, role), qkv(16))
    assert len(maps.take()) == before == 1


def test_maps_of_other_layers_are_not_compared():
    maps = recorded([64, 16], 256).take()
    assert [pair for pair in paired(maps, maps)] == list(zip(maps, maps, strict=True))
    with pytest.raises(PalimpsestError, match="gives the network other sizes at one noise level"):
        paired(maps, recorded([64, 36], 576).take())


def test_a_call_is_forgotten_when_its_maps_are_taken():
    maps = recorded([16, 16], 256)
    assert len(maps.take()) == 2
    maps.record(Site("cross", 0, "cond"), qkv(16))
    assert len(maps.take()) == 1
