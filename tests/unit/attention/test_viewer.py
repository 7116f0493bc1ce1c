"""Word maps along a recorded chain beside explicit maps, run anew and from what was kept."""

from dataclasses import dataclass, replace

import pytest
import torch
from palimpsest.pipelines.attention.features import FeatureRecorder, Features
from palimpsest.pipelines.attention.hooks import NO_HOOKS, QKV, Hooks, Site
from palimpsest.pipelines.attention.viewer import Look, steps_between, view_words
from palimpsest.pipelines.attention.word_maps import columns_of
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import distance, geometric, moment, picture
from palimpsest.tests.unit.maps import attention_maps

STEPS, TOKENS, CHANNELS, HEADS, SIZE = 5, 12, 16, 4, (48, 64)
DEPTHS = (1, 2, 2, 1)
GROUPS = [(2,), (1, 4, 5)]
SIGMAS = geometric(STEPS)


def look(**wishes):
    return Look(columns_of(GROUPS, TOKENS)[None], **wishes)


def trajectory(batch=1):
    latents = picture(STEPS + 1, batch, 2, *SIZE)
    return Trajectory(latents, SIGMAS, latents[0], Recipe("ddim"))


@dataclass
class Network:
    """Cross-attention in four layers of two sizes; queries depend on what it is shown."""

    runs: int = 0

    def qkv(self, layer, x, sigma):
        depth = DEPTHS[layer]
        seen = x[:, :1, :: 2**depth, :: 2**depth].flatten(2).transpose(1, 2)
        q = 3 * torch.tanh(seen + sigma.cos() + layer) * picture(1, 1, CHANNELS, seed=layer)
        k = 2 * picture(1, TOKENS, CHANNELS, seed=9 + layer).expand(len(x), -1, -1)
        return QKV(q, k, k)

    def source(self, hooks):
        def denoise(x, sigma):
            self.runs += 1
            for layer in range(len(DEPTHS)):
                own = self.qkv(layer, x, sigma)
                place = Site("cross", layer, "cond", own.q.shape[1], layers=4, depths=DEPTHS)
                for kind, role in (("cross", "cond"), ("self", "cond"), ("cross", "uncond")):
                    site = place._replace(kind=kind, role=role, heads=HEADS)
                    assert hooks.attention(site, own) is None
            return x

        return denoise


def expected(chain, steps, layers):
    """By explicit maps: summed over steps, layers and heads, each largest value 1."""
    total = 0
    for step in steps:
        x, sigma = chain.latents[STEPS - step], SIGMAS[STEPS - step]
        for layer in layers:
            own = Network().qkv(layer, x, sigma)
            maps = attention_maps(own.q, own.k, HEADS).mean(1)
            words = torch.stack([maps[..., list(group)].sum(-1) for group in GROUPS], 1)
            grid = [side >> DEPTHS[layer] for side in SIZE]
            factor = 2 ** DEPTHS[layer]
            shown = words.unflatten(2, grid)
            total = total + shown.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return total / total.amax((2, 3), keepdim=True)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("wishes", "layers"),
    [
        ({}, [1, 2]),
        ({"every": True}, [0, 1, 2, 3]),
        ({"every": True, "layers": (0.5, 1.0)}, [2, 3]),
        ({"layers": (0.0, 0.5)}, [1]),
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [[0], [1, 4], range(STEPS)], ids=str)
def test_maps_are_those_of_the_chain_summed_over_steps_layers_and_heads(
    batch, wishes, layers, steps
):
    chain, network, told = trajectory(batch), Network(), []
    maps = view_words(chain, look(**wishes), network.source, steps, on_step=told.append)
    assert maps.shape == (batch, len(GROUPS), *SIZE)
    assert distance(maps, expected(chain, steps, layers)) < 1e-13
    assert network.runs == len(told) == len(list(steps))
    assert told == list(range(1, len(told) + 1))


def test_without_a_layer_there_is_a_sentence():
    with pytest.raises(PalimpsestError, match="Attention Maps has no layer to look into, or no"):
        view_words(trajectory(), look(layers=(0.0, 0.2)), Network().source, [0])


class Memory(dict):
    """A store of features that, as a disk's, forgets all of a site but its place."""

    def write(self, step, kept):
        self[step] = {Site(s.kind, s.layer, s.role): qkv for s, qkv in kept.items()}

    def read(self, step):
        return self[step]


def kept(control, chain):
    """What an inversion of a chain kept: all steps but the noisiest."""
    recorder = FeatureRecorder(control, SIGMAS, 2**30, Memory())
    denoise = recorder.watch(Network().source(Hooks(recorder.record)))
    denoise(chain.latents[1], SIGMAS[1])  # where shapes are learnt
    for level in range(1, STEPS):
        denoise(chain.latents[level], SIGMAS[level])
    return recorder.result("")


def test_a_step_whose_attention_was_kept_is_not_run_again():
    chain, network = trajectory(), Network()
    features = kept(look(), chain)
    assert isinstance(features, Features)
    maps = view_words(chain, look(), network.source, range(STEPS), features=features)
    assert network.runs == 1  # the noisiest
    assert distance(maps, expected(chain, range(STEPS), [1, 2])) < 1e-13
    view_words(chain, look(every=True), network.source, range(STEPS), features=features)
    assert network.runs == 1 + STEPS  # other layers were not kept


def test_of_what_was_kept_only_whole_cross_attention_is_shown():
    """Another control's features may be in the same store: self-attention, or values alone."""
    chain, features = trajectory(), kept(look(), trajectory())
    q, k, v = Network().qkv(1, chain.latents[1], SIGMAS[1])
    more = {
        Site("self", 1, "cond"): QKV(q, k, v),
        Site("cross", 0, "cond"): QKV(q, None, v),
        Site("cross", 3, "cond"): QKV(None, k, v),
    }
    both = replace(features, read=lambda step: {**features.read(step), **more})
    maps = view_words(chain, look(), Network().source, range(STEPS), features=both)
    assert distance(maps, expected(chain, range(STEPS), [1, 2])) < 1e-13


def test_it_reads_the_conditional_cross_attention_and_changes_none():
    at, own = moment(0, STEPS), QKV(*picture(3, 1, 4, 4))
    site = Site("cross", 1, "cond", 192, layers=4, depths=DEPTHS)
    assert look().active(at) and look().reads(site, at)
    assert not look().reads(site._replace(kind="self"), at)
    assert look().terms(own, own, site, at) is None
    assert look().kept(site, own, at) == QKV(own.q, own.k, None)
    assert [look().source_role(role) for role in ("cond", "uncond")] == ["cond", None]
    assert NO_HOOKS.attention is None


@pytest.mark.parametrize(
    ("steps", "window", "count", "chosen"),
    [
        (50, (0.0, 1.0), 5, [5, 15, 25, 35, 45]),
        (50, (0.0, 1.0), 1, [25]),
        (10, (0.2, 0.5), 9, [2, 3, 4]),
        (10, (0.2, 0.5), 2, [2, 4]),
        (10, (0.5, 0.5), 3, [5]),
        (10, (1.0, 1.0), 3, []),
        (4, (0.1, 0.2), 3, [0]),
        (4, (0.0, 1.0), 100, [0, 1, 2, 3]),
    ],
)
def test_steps_are_spread_over_their_window(steps, window, count, chosen):
    assert steps_between(steps, window, count) == chosen


@pytest.mark.parametrize("part", [(-0.1, 1.0), (0.6, 0.5), (0.0, 1.1)])
def test_a_part_that_is_none_is_refused(part):
    with pytest.raises(PalimpsestError, match=r"The layers of Attention Maps: .* rising"):
        replace(look(), layers=part)
    with pytest.raises(PalimpsestError, match=r"The steps of Attention Maps: .* rising"):
        steps_between(10, part, 3)
