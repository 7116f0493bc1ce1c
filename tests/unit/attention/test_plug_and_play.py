"""Plug-and-Play: what is read of the source, beside explicit maps, and where it acts."""

from dataclasses import replace

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.control import FeatureControl, source_roles
from palimpsest.pipelines.attention.hooks import QKV, Site, attend, hooked_feature
from palimpsest.pipelines.attention.plug_and_play import PlugAndPlay
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.unit.analytic import distance, moment, picture
from palimpsest.tests.unit.maps import attention, attention_maps, look

PIXELS, CHANNELS, STEPS = 9, 16, 50
SITE = Site("self", 12, "cond", PIXELS, layers=16)
BLOCK = Site("features", 14, "cond", PIXELS, layers=22)
ROLES = ["uncond", "cond"]

#: Another order of float64 operations.
IDENTITY = 1e-14


def qkv(rows=1, seed=0):
    return QKV(*(2 * picture(rows, PIXELS, CHANNELS, seed=seed + i) for i in range(3)))


@pytest.mark.parametrize("heads", [1, 4])
def test_both_branches_use_the_maps_of_the_sources_one_row_on_their_own_values(heads):
    target, source, bank = qkv(2), qkv(1, seed=5), Bank(PlugAndPlay())
    bank.begin(moment(0, STEPS))
    bank.record(SITE, source)
    ours = attend(target, SITE, ROLES, bank.inject, lambda term: attention(term, heads))
    maps = attention_maps(source.q, source.k, heads).expand(2, -1, -1, -1)
    assert distance(ours, look(maps, target.v)) < IDENTITY


def test_the_feature_of_the_one_block_is_the_sources_in_both_branches():
    source, own, bank = picture(1, 4, 3, 3), picture(2, 4, 3, 3, seed=1), Bank(PlugAndPlay())
    bank.begin(moment(0, STEPS))
    for layer in range(22):
        hooked_feature(source, BLOCK._replace(layer=layer), ["cond"], bank.recording.feature)
    for layer in range(22):
        place = BLOCK._replace(layer=layer)
        made = hooked_feature(own, place, ROLES, bank.injecting.feature)
        assert torch.equal(made, source.expand(2, -1, -1, -1) if layer == 14 else own)


def test_it_reads_one_row_and_looks_into_residual_blocks():
    assert source_roles(PlugAndPlay()) == ("cond",)
    assert isinstance(PlugAndPlay(), FeatureControl)
    own = qkv()
    assert PlugAndPlay().kept(SITE, own, moment(0, STEPS)) == QKV(own.q, own.k, None)


@pytest.mark.parametrize(("steps", "maps", "features"), [(50, 25, 40), (10, 5, 8), (8, 4, 6)])
def test_the_windows_are_the_published_ones(steps, maps, features):
    for step in range(steps):
        at, control = moment(step, steps), PlugAndPlay()
        assert control.reads(SITE, at) == (step < maps)
        assert control.reads(BLOCK, at) == (step < features)
        assert control.active(at) == (step < max(maps, features))


@pytest.mark.parametrize("layers", [16, 70, 7])
def test_the_second_half_of_the_layers_gives_its_maps(layers):
    sites = [Site("self", n, "cond", layers=layers) for n in range(layers)]
    read = [PlugAndPlay().reads(site, moment(0, STEPS)) for site in sites]
    assert read == [n >= layers / 2 for n in range(layers)]


def test_the_first_block_may_be_the_one():
    first = BLOCK._replace(layer=0)
    assert PlugAndPlay(block=0.0).reads(first, moment(0, STEPS))
    assert not PlugAndPlay(block=0.0).reads(first._replace(layer=1), moment(0, STEPS))


@pytest.mark.parametrize(("blocks", "block"), [(22, 14), (17, 10), (8, 5)])
def test_the_published_block_of_sd1_and_the_one_there_in_others(blocks, block):
    sites = [Site("features", n, "cond", layers=blocks) for n in range(blocks)]
    read = [PlugAndPlay().reads(site, moment(0, STEPS)) for site in sites]
    assert read == [n == block for n in range(blocks)]


@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_no_other_attention_is_touched(kind):
    assert not PlugAndPlay().reads(SITE._replace(kind=kind), moment(0, STEPS))


@pytest.mark.parametrize("name", ["attention_window", "feature_window", "layers"])
def test_a_part_that_is_none_is_refused(name):
    said = name.replace("_", " ")
    with pytest.raises(PalimpsestError, match=f"Plug-and-Play's {said}: 0.6 to 0.5 must be two"):
        replace(PlugAndPlay(), **{name: (0.6, 0.5)})


@pytest.mark.parametrize("block", [-0.1, 1.0, float("nan")])
def test_a_block_that_is_none_is_refused(block):
    with pytest.raises(PalimpsestError, match="a fraction from 0 to below 1"):
        PlugAndPlay(block=block)
