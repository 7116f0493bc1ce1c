"""pix2pix-zero beside the published loop over a small network whose maps are all explicit."""

from dataclasses import dataclass, replace

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import NO_HOOKS, QKV, ROLES, Site
from palimpsest.pipelines.attention.pix2pix_zero import Pix2PixZero, edit_direction, map_loss
from palimpsest.pipelines.correction import ADD_SOURCE, DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.denoiser import guide
from palimpsest.pipelines.edit_along import edit_along
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.edict import couple
from palimpsest.pipelines.inversion.uni_inv import uni_inv
from palimpsest.pipelines.proximal import Proximal
from palimpsest.pipelines.schedule import VP, vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import (
    Prompted,
    alpha_of,
    distance,
    geometric,
    moment,
    picture,
    vp_step,
)
from palimpsest.tests.unit.maps import attention_maps

HEADS, WIDTH, TOKENS, LAYERS, STEPS, CFG = 2, 8, 5, 3, 4, 3.0
SIGMAS, CHAIN = geometric(STEPS), picture(STEPS + 1, 2, 4, 2, 3, seed=40)

#: The same real numbers in another order of float64 operations, through a few steps.
IDENTITY = 1e-10

WEIGHTS = {
    name: [0.8 * picture(WIDTH, WIDTH, seed=9 * i + j) / WIDTH**0.5 for i in range(LAYERS)]
    for j, name in enumerate("qkv")
}
INTO, OUT = picture(4, WIDTH, seed=80), 0.3 * picture(WIDTH, 4, seed=81)
PROMPTS = {name: picture(1, TOKENS, WIDTH, seed=90 + i) for i, name in enumerate("stn")}


def network(z, prompt, look=lambda layer, qkv: None):
    """The noise that z [B, 4, h, w] is predicted to hold; every layer is one cross-attention."""
    h = z.flatten(2).transpose(1, 2) @ INTO
    for layer in range(LAYERS):
        q = h @ WEIGHTS["q"][layer]
        k, v = (prompt.expand(len(z), -1, -1) @ WEIGHTS[name][layer] for name in "kv")
        look(layer, QKV(q, k, v))
        maps = attention_maps(q, k, HEADS)
        heads = v.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        h = h + (maps @ heads).transpose(1, 2).flatten(2)
    return torch.tanh(h @ OUT).transpose(1, 2).view_as(z)


@dataclass
class Host:
    """Lends that network, and counts its rows."""

    cfg: float = CFG
    negative: str = "n"
    scale: object = vp_scale
    alone: bool = True
    rows: int = 0

    def mean(self, x, sigma, asked, role):
        prompt = self.negative if role == "uncond" else asked.prompt[0]

        def look(layer, qkv):
            if asked.hooks is not NO_HOOKS:
                site = Site("cross", layer, role, qkv.q.shape[1], layers=LAYERS, heads=HEADS)
                assert asked.hooks.attention(site, qkv) is None

        self.rows += len(x)
        with torch.set_grad_enabled(asked.gradients):
            z = x * vp_scale(sigma)
            return x - sigma * network(z, PROMPTS[prompt], look)

    def denoiser(self, asked):
        def denoise(x, sigma):
            shown = x if asked.conditional is None else asked.conditional
            cond = self.mean(shown, sigma, asked, "cond") + (x - shown)
            cfg = self.cfg if asked.guidance is None else asked.guidance(float(sigma))
            if cfg == 1:
                return cond
            uncond = self.mean(x, sigma, asked, "uncond")
            return asked.mix(cond, uncond, cfg, sigma) if asked.mix else guide(cond, uncond, cfg)

        return denoise

    def recorder(self, asked, roles):
        return lambda x, sigma: [self.mean(x, sigma, asked, role) for role in roles][-1]

    def one_row(self, asked):
        return self.negative == asked.prompt[0]

    def key(self, asked):
        return ""

    def features_key(self):
        return ""


def recorded(**recipe):
    return Trajectory(CHAIN, SIGMAS, CHAIN[0], Recipe("ddim", **recipe))


def maps_of(z, prompt):
    """[layers] the maps of one call."""
    seen = []
    noise = network(z, prompt, lambda _, qkv: seen.append(attention_maps(qkv.q, qkv.k, HEADS)))
    return noise, seen


def published(correction, rate, negative="n", cfg=CFG):
    """The loop as it is released, in its own coordinates, for one picture after the other."""
    ends = []
    for row in range(CHAIN.shape[1]):
        chain = CHAIN[:, row : row + 1]
        scaled = [z * vp_scale(s) for z, s in zip(chain, SIGMAS, strict=True)]
        z = source = scaled[-1]
        for level in range(STEPS, 0, -1):
            alphas = alpha_of(SIGMAS[level]), alpha_of(SIGMAS[level - 1])
            prompts = [PROMPTS[negative], PROMPTS["t"]]
            seen = [maps_of(source, prompt) for prompt in (PROMPTS[negative], PROMPTS["s"])]
            noise = guide(seen[1][0], seen[0][0], cfg)
            came = vp_step(noise, *alphas, source)
            missed = scaled[level - 1] - came
            both = torch.cat([z, z]).requires_grad_()
            loss = 0
            for layer in range(LAYERS):
                now = [maps_of(both[i : i + 1], prompts[i])[1][layer] for i in range(2)]
                apart = torch.cat(now) - torch.cat([seen[i][1][layer] for i in range(2)])
                loss = loss + apart.flatten(0, 1).square().sum((1, 2)).mean()
            both = (both - rate * torch.autograd.grad(loss, both)[0]).detach()
            uncond, cond = (network(both[i : i + 1], prompts[i]) for i in range(2))
            z = vp_step(guide(cond, uncond, cfg), *alphas, both[:1])
            if correction is ADD_SOURCE:
                z = z + missed
            source = came if correction is UNCORRECTED else scaled[level - 1]
        ends.append((z / vp_scale(SIGMAS[0]), source / vp_scale(SIGMAS[0])))
    return [torch.cat(rows) for rows in zip(*ends, strict=True)]


@pytest.mark.parametrize("negative", ["n", "s"])
@pytest.mark.parametrize(
    "correction", [DIRECT_INVERSION, UNCORRECTED, ADD_SOURCE], ids=["direct", "none", "add source"]
)
def test_an_edit_is_the_published_loop(correction, negative):
    control, host = Pix2PixZero(0.3), Host(negative=negative)
    done = edit_along(
        recorded(), host, control=control, correction=correction, keep_source=True
    ).run()
    target, source = published(correction, 0.3, negative)
    assert distance(done.latent, target) < IDENTITY
    assert distance(done.source, source) < IDENTITY
    assert distance(target, published(correction, 0.0, negative)[0]) > 0.01


@pytest.mark.parametrize(("negative", "source"), [("n", 2), ("s", 1)])
def test_a_step_takes_four_rows_and_those_of_the_source_that_differ(negative, source):
    host = Host(negative=negative)
    edit_along(recorded(), host, control=Pix2PixZero()).run()
    assert host.rows == 2 * STEPS * (4 + source)  # of two pictures


def test_at_guidance_1_there_is_no_unconditional_copy():
    host = Host(cfg=1.0, negative="s")
    done = edit_along(recorded(), host, control=Pix2PixZero(0.3)).run()
    z = CHAIN[-1] * vp_scale(SIGMAS[-1])
    for level in range(STEPS, 0, -1):
        alphas = alpha_of(SIGMAS[level]), alpha_of(SIGMAS[level - 1])
        wanted = maps_of(CHAIN[level] * vp_scale(SIGMAS[level]), PROMPTS["s"])[1]
        leaf = z.clone().requires_grad_()
        now = maps_of(leaf, PROMPTS["t"])[1]
        loss = sum((a - b).square().sum() for a, b in zip(now, wanted, strict=True)) / (2 * HEADS)
        z = z - 0.3 * torch.autograd.grad(loss, leaf)[0]
        z = vp_step(network(z, PROMPTS["t"]), *alphas, z)
    assert distance(done.latent, z / vp_scale(SIGMAS[0])) < IDENTITY
    assert host.rows == 2 * STEPS * 3


def test_without_strength_nothing_is_moved_and_no_source_run():
    host = Host()
    done = edit_along(recorded(), host, control=Pix2PixZero(0.0)).run()
    assert torch.equal(done.latent, edit_along(recorded(), Host()).run().latent)
    assert host.rows == 2 * STEPS * 2


def test_an_edit_leaves_no_graph_behind():
    done = edit_along(recorded(), Host(), control=Pix2PixZero()).run()
    assert not done.latent.requires_grad
    with torch.inference_mode():
        chain = recorded().to("cpu")
    assert torch.equal(edit_along(chain, Host(), control=Pix2PixZero()).run().latent, done.latent)


def test_proximal_guidance_limits_what_the_moved_copies_disagree_about():
    carried = Proximal(pull=0.2, below=1.0)
    chain = recorded().with_carried(carried)
    done = edit_along(chain, Host(), control=Pix2PixZero(0.3)).run()
    free = edit_along(recorded(), Host(), control=Pix2PixZero(0.3)).run()
    still = edit_along(chain, Host()).run()
    assert distance(done.latent, free.latent) > 1e-3
    assert distance(done.latent, still.latent) > 1e-3


@pytest.mark.parametrize("method", [couple, uni_inv])
def test_a_trajectory_with_a_loop_of_its_own_is_refused(method):
    model = Prompted(0.4)
    made = method(model, CHAIN[0], SIGMAS, family=VP)
    chain = Trajectory(made.latents, SIGMAS, CHAIN[0], made.recipe, carried=made.carried)
    with pytest.raises(PalimpsestError, match=r"whose .* a control that moves the latent before"):
        edit_along(chain, Host(), control=Pix2PixZero())


# -- its parts -----------------------------------------------------------------------------------


def qkv(rows, places=6, tokens=TOKENS, seed=0):
    return QKV(*(picture(rows, n, WIDTH, seed=seed + i) for i, n in enumerate([places, tokens, 1])))


def test_a_layers_loss_is_the_squared_distance_of_its_maps_over_the_heads_of_both_branches():
    own, source = qkv(2), qkv(2, seed=7)
    apart = attention_maps(own.q, own.k, HEADS) - attention_maps(source.q, source.k, HEADS)
    by_hand = [float((apart[row] ** 2).sum()) / (2 * HEADS) for row in range(2)]
    assert map_loss(own, source, HEADS).tolist() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("sizes", [{"tokens": TOKENS + 1}, {"places": 4}], ids=str)
def test_maps_of_other_sizes_are_refused(sizes):
    with pytest.raises(PalimpsestError, match=r"6 x 5 places and tokens, .* equally long prompts"):
        map_loss(qkv(1, **sizes), qkv(1), HEADS)


def test_a_direction_is_the_difference_of_two_means():
    before, after = picture(3, TOKENS, WIDTH), picture(2, TOKENS, WIDTH, seed=5)
    expected = (after[0] + after[1]) / 2 - (before[0] + before[1] + before[2]) / 3
    direction = edit_direction(before, after)
    assert direction.shape == (1, TOKENS, WIDTH)
    assert distance(direction[0], expected) < 1e-15


def test_sentences_of_other_lengths_are_refused():
    with pytest.raises(PalimpsestError, match=r"are \(5, 8\) tokens .* keep all of them shorter"):
        edit_direction(picture(1, TOKENS, WIDTH), picture(2, 2 * TOKENS, WIDTH))


def test_cross_attention_is_compared_branch_by_branch_at_every_step():
    control, site = Pix2PixZero(), Site("cross", 1, "cond", layers=LAYERS)
    assert [control.source_role(role) for role in ROLES] == list(ROLES)
    for step in range(STEPS):
        assert control.active(moment(step, STEPS)) and control.reads(site, moment(step, STEPS))
        for kind in ("self", "joint", "features"):
            assert not control.reads(site._replace(kind=kind), moment(step, STEPS))
    own = qkv(1)
    kept = control.kept(site, own, moment(0, STEPS))
    assert kept.q is own.q and kept.k is own.k and kept.v is None


def test_the_targets_own_attention_is_left_alone():
    control, at = Pix2PixZero(), moment(1, STEPS)
    bank, site, own = Bank(control), Site("cross", 0, "cond", layers=LAYERS), qkv(1)
    bank.begin(at)
    bank.record(site, qkv(1, seed=7))
    assert bank.inject(site, own) is None


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_a_strength_that_is_none_is_refused(rate):
    with pytest.raises(PalimpsestError, match=r"pix2pix-zero's xa_guidance is .* 0\.1 is usual"):
        replace(Pix2PixZero(), xa_guidance=rate)
