"""The ablations of Direct Inversion beside the published loops, in their own coordinates.

Scale, interval and add source are in test_editing.py; here are add target and the guidance of the
inversion and of the forward pass.
"""

from dataclasses import dataclass, field
from itertools import pairwise, product

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import QKV, Site
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.correction import ADD_SOURCE, ADD_TARGET, DIRECT_INVERSION, Correction
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.editing import Branches, Edit
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.kept_region import outside
from palimpsest.pipelines.schedule import vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import Prompted, alpha_of, geometric, picture, vp_step
from palimpsest.tests.unit.prompts import prompt

SOURCE, TARGET, CFG, STEPS = 0.4, -0.7, 7.5, 8
IDENTITY = 1e-10  # the same real numbers in another order of float64 operations
GUIDANCES = (0.0, 1.0, 2.5, 5.0, 7.5)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def recorded(cfg=1.0, dtype=torch.float64):
    sigmas = geometric(STEPS + 1)[1:]
    x0 = picture().to(dtype)
    latents = ddim(Prompted(SOURCE, cfg), x0, sigmas, scale=vp_scale)
    return Trajectory(latents, sigmas, x0, Recipe("ddim", cfg=cfg))


@dataclass
class Controlled:
    """A target whose noise a control pulls half way to that of the source row."""

    cfg: float
    seen: list = field(default_factory=list)

    def record(self, x, sigma):
        self.seen.append(Prompted(SOURCE, self.cfg)(x, sigma))
        return self.seen[-1]

    def target(self, x, sigma):
        own = Prompted(TARGET, self.cfg)(x, sigma)
        return own + 0.5 * (self.seen[-1] - own)

    def branches(self):
        return Branches(
            target=self.target,
            source=self.record,
            record=self.record,
            unedited=Prompted(TARGET, self.cfg),
        )


class Everywhere:
    """A control that reads at every step; what of it reaches the target is `Controlled`'s."""

    def source_role(self, role):
        return role

    def reads(self, site, at):
        return False

    def active(self, at):
        return True

    def kept(self, site, qkv, at):
        return qkv

    def terms(self, qkv, source, site, at):
        return source and (qkv,)


def vp_chain(trajectory):
    return trajectory.latents * vp_scale(trajectory.sigmas).view(-1, 1, 1, 1, 1)


def offsets(trajectory, cfg):
    """Part II of the published code: both rows put back on the chain before every step, both
    guided, no attention control; [steps] pairs (source, target)."""
    stars, sigmas, found = vp_chain(trajectory), trajectory.sigmas, []
    for level in range(STEPS, 0, -1):
        alphas = alpha_of(sigmas[level]), alpha_of(sigmas[level - 1])
        row = [
            stars[level - 1]
            - vp_step(Prompted(text, cfg).noise(stars[level], sigmas[level]), *alphas, stars[level])
            for text in (SOURCE, TARGET)
        ]
        found.append(row)
    return found


def published(trajectory, cfg, *, added, controlled=False):
    """Part III: [source, target], each moved by its own offset where it is in `added`."""
    stars, sigmas = vp_chain(trajectory), trajectory.sigmas
    source = target = stars[-1]
    for i, pair in enumerate(offsets(trajectory, cfg)):
        level = STEPS - i
        sigma, alphas = sigmas[level], (alpha_of(sigmas[level]), alpha_of(sigmas[level - 1]))
        eps_source = Prompted(SOURCE, cfg).noise(source, sigma)
        eps_target = Prompted(TARGET, cfg).noise(target, sigma)
        if controlled:
            # The control mixes the clean guesses: D = x - sigma eps in x = z / sqrt(abar).
            shift = (target - source) / (vp_scale(sigma) * sigma)
            eps_target = eps_target + 0.5 * (eps_source - eps_target + shift)
        source = vp_step(eps_source, *alphas, source)
        target = vp_step(eps_target, *alphas, target)
        source = source + pair[0]
        target = target + (pair[1] if "target" in added else 0)
        target = target + (pair[0] if "source on target" in added else 0)
    return [row / vp_scale(sigmas[0]) for row in (source, target)]


# -- add target ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 2.5, 7.5])
def test_add_target_is_the_published_recurrence(cfg):
    trajectory = recorded()
    done = Edit(
        trajectory,
        Controlled(cfg).branches(),
        correction=ADD_TARGET,
        bank=Bank(Everywhere()),
    ).run()
    source, target = published(trajectory, cfg, added={"target"}, controlled=True)
    assert relative(done.latent, target) < IDENTITY
    assert relative(source, trajectory.origin) < IDENTITY
    # It is neither the plain edit nor add source.
    for others in (set(), {"source on target"}):
        assert relative(published(trajectory, cfg, added=others, controlled=True)[1], target) > 0.01


@pytest.mark.parametrize("strength", [0.25, 0.5])
def test_a_part_of_the_targets_residual_is_that_part_of_its_offset(strength):
    trajectory, model = recorded(), Prompted(TARGET, CFG)
    made = Branches(target=model, source=Prompted(SOURCE, CFG))
    wanted = Correction(target_strength=strength, residual_of="target")
    done = Edit(trajectory, made, correction=wanted).run()
    stars, z = vp_chain(trajectory), vp_chain(trajectory)[-1]
    for i, (_, offset) in enumerate(offsets(trajectory, CFG)):
        sigma, sigma_next = (trajectory.sigmas[STEPS - i - j] for j in (0, 1))
        z = vp_step(model.noise(z, sigma), alpha_of(sigma), alpha_of(sigma_next), z)
        z = z + strength * offset
    assert relative(done.latent, z / vp_scale(trajectory.sigmas[0])) < IDENTITY
    assert relative(stars[-1], z) > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_without_a_control_add_target_returns_the_picture_bit_for_bit_and_runs_nothing(dtype):
    """The published offset of the target is then all that its step does."""
    trajectory, made = recorded(dtype=dtype), Branches(Prompted(TARGET, CFG), Prompted(SOURCE, CFG))
    done = Edit(trajectory, made, correction=ADD_TARGET).run()
    assert torch.equal(done.latent, trajectory.origin)
    assert made.target.calls == []
    if dtype == torch.float64:
        _, target = published(trajectory, CFG, added={"target"})
        assert relative(target, trajectory.origin) < IDENTITY


def test_outside_a_mask_add_target_keeps_the_chain_bit_for_bit():
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., :3] = 1
    trajectory = recorded(dtype=torch.float32)
    bank = Bank(Everywhere())
    whole = Edit(
        trajectory,
        Controlled(CFG).branches(),
        correction=ADD_TARGET,
        bank=bank,
        after=outside(mask, trajectory),
    )
    done = whole.run()
    assert torch.equal(done.latent[..., 3:], trajectory.origin[..., 3:])
    assert relative(done.latent[..., :3], trajectory.origin[..., :3]) > 0.01


def test_add_target_needs_the_chain():
    with pytest.raises(PalimpsestError, match="scale and interval must be 1"):
        Correction(scale=0.5, target_strength=1.0, residual_of="target")


# -- guidance of inversion and forward pass ------------------------------------------------------


def published_inversion(cfg, x0, sigmas):
    """DDIM inversion with guidance, both predictions at the level that the step goes to."""
    z = x0 * vp_scale(sigmas[0])
    chain = [z]
    for sigma, sigma_next in pairwise(sigmas):
        noise = Prompted(SOURCE, cfg).noise(z, sigma_next)
        z = vp_step(noise, alpha_of(sigma), alpha_of(sigma_next), z)
        chain.append(z)
    return torch.stack(chain)


@pytest.mark.parametrize(("inverted", "forward"), list(product(GUIDANCES, GUIDANCES)))
def test_the_grid_of_guidances_is_the_published_one(inverted, forward):
    trajectory = recorded(inverted)
    stars = published_inversion(inverted, picture(), trajectory.sigmas)
    assert relative(vp_chain(trajectory), stars) < IDENTITY
    made = Branches(Prompted(TARGET, forward), Prompted(SOURCE, forward))
    done = Edit(trajectory, made, correction=DIRECT_INVERSION).run()
    source, target = published(trajectory, forward, added=set())
    assert relative(done.latent, target) < IDENTITY
    assert relative(source, trajectory.origin) < IDENTITY
    assert torch.equal(done.source, trajectory.origin)


def test_every_guidance_of_the_grid_gives_another_chain_and_another_edit():
    ends = [recorded(cfg).start for cfg in GUIDANCES]
    edits = [
        Edit(recorded(), Branches(Prompted(TARGET, cfg), Prompted(SOURCE, cfg))).run().latent
        for cfg in GUIDANCES
    ]
    for found in (ends, edits):
        assert all(relative(a, b) > 0.01 for i, a in enumerate(found) for b in found[:i])


# -- rows ----------------------------------------------------------------------------------------


def rows_of(correction, control=True):
    """Rows of 50 steps: inversion and edit."""
    spent = []
    texts = prompt("a red cat", 8), prompt("a blue cat", 8)
    bank = Bank(rewrite_prompt(*texts)) if control else None

    def branch(rows, hook=None):
        def denoise(x, sigma):
            spent.append(rows)
            if hook is not None:
                hook(Site("self", 0, "cond"), QKV(*torch.zeros(3, 1, 4, 2)))
                hook(Site("cross", 0, "cond"), QKV(*torch.zeros(3, 1, 8, 2)))
            return x / (1 + sigma)

        return denoise

    sigmas = geometric(50)
    latents = ddim(branch(1), picture(1, 4, 3, 5), sigmas, scale=vp_scale)
    trajectory = Trajectory(latents, sigmas, latents[0], Recipe("ddim"))
    record, inject = (bank.record, bank.inject) if bank else (None, None)
    made = Branches(
        target=branch(2, inject),
        source=branch(2, record),
        record=branch(1, record),
        unedited=branch(2) if bank else None,
    )
    Edit(trajectory, made, correction=correction, bank=bank).run()
    return sum(spent)


@pytest.mark.parametrize(
    ("correction", "control", "rows"),
    [
        # Inversion, target, and: the guided source; the target unedited, and 30 rows that are read.
        (ADD_SOURCE, True, 50 + 100 + 100),
        (ADD_TARGET, True, 50 + 100 + 100 + 30),
        (ADD_TARGET, False, 50),
        (Correction(0.4), True, 50 + 100 + 60),
        (Correction(0.8), True, 50 + 100 + 60),
        (Correction(1.0, 5), True, 50 + 100 + 60),
    ],
    ids=str,
)
def test_an_ablation_costs_its_own_rows(correction, control, rows):
    assert rows_of(correction, control) == rows
