"""One cell that is no number is enough: no method returns it, each names its step."""

import pytest
import torch
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.diffedit import edit_mask
from palimpsest.pipelines.edit_along import edit_along
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.edict import couple
from palimpsest.pipelines.inversion.null_text import NullText, fit
from palimpsest.pipelines.inversion.uni_inv import uni_inv
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.schedule import VP, vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import Prompted, geometric, picture
from palimpsest.tests.unit.test_edit_along import Host

STEPS, X0, SIGMAS = 4, picture(), geometric(4)
LEFT = "left the finite numbers"


def spoilt(model, value=float("nan"), call=1):
    """The same, but for one cell of the last picture in one of its calls."""
    calls = []

    def denoise(x, sigma, *more):
        calls.append(sigma)
        made = model(x, sigma, *more).clone()
        if len(calls) == call:
            made[-1, -1, -1, -1] = value
        return made

    return denoise


PLAIN = Prompted(0.4)
INVERSIONS = {
    "ddim": lambda model: ddim(model, X0, SIGMAS, scale=vp_scale),
    "edict": lambda model: couple(model, X0, SIGMAS[1:], family=VP),
    "uni_inv": lambda model: uni_inv(model, X0, SIGMAS, family=VP),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", INVERSIONS)
def test_no_inversion_returns_it(name, value):
    with pytest.raises(PalimpsestError, match=f"{LEFT} at step 2 of"):
        INVERSIONS[name](spoilt(PLAIN, value, call=3 if name == "edict" else 2))


def test_null_text_does_not_learn_from_it():
    chain = ddim(PLAIN, X0, SIGMAS, scale=vp_scale)
    unconditional = lambda x, sigma, u, pictures: PLAIN(x, sigma) + 0 * u.sum()
    cond = spoilt(PLAIN, call=2)
    with pytest.raises(PalimpsestError, match=rf"{LEFT} at step 2 of {STEPS} "):
        fit(cond, unconditional, chain, SIGMAS, torch.zeros(1, 2, 3), NullText(inner_steps=0))


def test_diffedit_does_not_take_it_for_a_difference():
    with pytest.raises(PalimpsestError, match=LEFT):
        edit_mask(PLAIN, spoilt(Prompted(-0.7)), X0, SIGMAS[2], draw=seeded(0))


class Spoiling(Host):
    """A host whose target has such a cell in one of its calls."""

    def denoiser(self, asked):
        made = super().denoiser(asked)
        return spoilt(made, call=2) if asked.prompt == "target" else made


def chain_of(kind):
    if kind == "ddim":
        latents = ddim(PLAIN, X0, SIGMAS, scale=vp_scale)
        return Trajectory(latents, SIGMAS, X0, Recipe("ddim"))
    levels = SIGMAS[1:] if kind == "edict" else SIGMAS
    made = {"edict": couple, "uni_inv": uni_inv}[kind](PLAIN, X0, levels, family=VP)
    return Trajectory(made.latents, levels, X0, made.recipe, carried=made.carried)


@pytest.mark.parametrize(("kind", "step"), [("ddim", 2), ("edict", 1), ("uni_inv", 2)])
def test_no_edit_returns_it(kind, step):
    with pytest.raises(PalimpsestError, match=f"The edit {LEFT} at step {step} of"):
        edit_along(chain_of(kind), Spoiling()).run()
