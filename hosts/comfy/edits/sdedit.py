"""SDEdit and inpainting on ComfyUI's MODEL, CONDITIONING and LATENT."""

from dataclasses import dataclass
from typing import Any, Literal

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.errors import PalimpsestError
from ....pipelines.noise import seeded
from ....pipelines.sdedit import sdedit, sigma_of_t0_ve, sigma_of_t0_vp
from ..coordinates import Coordinates, coordinates_of, host_levels, rising_sigmas
from ..cost import Spent
from ..guidance import BranchGuider, Conditioning
from ..latents import batch_index_of, samples_of
from ..masks import check_mask_fits, latent_mask
from ..refusals import check_samples
from ..schedules import schedule
from ..session import Session, run

#: What a strength may count, in the words of the nodes.
UNITS = ("t0 (VP)", "t0 (VE)", "denoise", "sigma")


@dataclass(frozen=True)
class Strength:
    """How much noise.

    Attributes:
        unit: One of `UNITS`.
        value: In that unit.
    """

    unit: str
    value: float


def levels_of(
    model: ModelPatcher, strength: Strength, scheduler: str, steps: int
) -> tuple[Tensor, float]:
    """Falling levels that begin exactly at a strength, spread as a scheduler spreads them.

    Returns:
        [steps + 1] levels, as core's SIGMAS, and the sigma of the first.

    Raises:
        PalimpsestError: If the strength is none of this model's, or leaves no such steps.
    """
    coordinates = coordinates_of(model, "SDEdit")
    if strength.unit == "denoise":
        _check_part(strength)
        levels = schedule(model, scheduler, steps, strength.value)
        return levels, float(coordinates.sigma(levels[0].double()))
    sigma = _sigma_of(strength)
    known = _known_sigmas(model, coordinates)
    if not known[0] <= sigma <= known[-1] * 1.0001:
        low, high = _allowed(strength.unit, known)
        raise PalimpsestError(
            f"{strength.unit} {strength.value:g} is sigma {sigma:.4g}, this model knows "
            f"{float(known[0]):.3g} to {float(known[-1]):.4g}: choose a strength from {low:.2g} to "
            f"{high:.3g}."
        )
    reached = int((known - sigma).abs().argmin()) + 1
    levels = schedule(model, scheduler, steps, reached / len(known))
    first = coordinates.level(torch.tensor(sigma, dtype=torch.float64)).float()
    levels = torch.cat([first[None], levels[1:]])
    if not bool((levels.diff() < 0).all()):
        raise PalimpsestError(
            f"The schedule {scheduler!r} has no {steps} different levels below sigma {sigma:.4g}: "
            "use fewer steps or another scheduler."
        )
    return levels, sigma


def _check_part(strength: Strength) -> None:
    if not 0 < strength.value <= 1:
        raise PalimpsestError(
            f"Strength must be above 0 and at most 1 in the unit {strength.unit}, got "
            f"{strength.value:g}: try 0.5."
        )


def _sigma_of(strength: Strength) -> float:
    if strength.unit == "sigma":
        return strength.value
    _check_part(strength)
    return (sigma_of_t0_vp if strength.unit == "t0 (VP)" else sigma_of_t0_ve)(strength.value)


def _allowed(unit: str, known: Tensor) -> tuple[float, float]:
    """The least and the largest strength of a unit within known sigmas, by hundredths for t0."""
    if unit == "sigma":
        return float(known[0]), float(known[-1])
    hundredths = [n / 100 for n in range(1, 101)]
    inside = [n for n in hundredths if known[0] <= _sigma_of(Strength(unit, n)) <= known[-1]]
    return min(inside), max(inside)


def _known_sigmas(model: ModelPatcher, coordinates: Coordinates) -> Tensor:
    """The sigmas of the model's training levels, rising."""
    return coordinates.sigma(model.get_model_object("model_sampling").sigmas.double().cpu())


def noised(
    model: ModelPatcher, latent: dict[str, Any], sigma: float, seed: int, noise: Any | None
) -> Tensor:
    """A LATENT at a noise level, with leftover noise as core's samplers take it.

    Args:
        model: Whose latent it is.
        latent: The LATENT.
        sigma: The level.
        seed: Of the noise, where none is given.
        noise: A NOISE of core's.
    """
    samples = samples_of(model, latent)
    check_samples(model, samples)
    x0 = model.model.process_latent_in(samples.float())
    if noise is None:
        drawn = seeded(seed, batch_index_of(latent))(x0)
    else:
        drawn = noise.generate_noise({**latent, "samples": samples}).to(x0)
    if drawn.shape != x0.shape:
        raise PalimpsestError(
            f"The noise is {tuple(drawn.shape)}, the latent {tuple(x0.shape)}: connect noise of "
            "the latent's size."
        )
    return model.model.process_latent_out(x0 + sigma * drawn)


@dataclass(frozen=True, eq=False)
class SDEditRequest:
    """A guide to be painted anew, as it comes from the wires.

    Attributes:
        model: An eps-, v-prediction or flow model.
        positive: What the picture shall show.
        negative: The other end of the guidance.
        samples: [B, C, h, w] the guide, a LATENT.
        levels: [k+1] falling levels, as core's SIGMAS; the first is where the walk begins.
        cfg: Guidance scale.
        seed: Of all noise.
        batch_index: Numbers of the pictures that the noise is drawn by, if they have any.
        mask: [b, H, W] in 0..1, white where it is painted anew; None everywhere.
        eta: 1 for the SDE, 0 for the ODE.
        order: 1, or 2 for DPM-Solver++ (2M).
        repeats: How often.
        wipe: Begin with noise alone where the mask is open.
        feature: What the node is called, for messages.
    """

    model: ModelPatcher
    positive: Conditioning
    negative: Conditioning
    samples: Tensor
    levels: Tensor
    cfg: float
    seed: int
    mask: Tensor | None = None
    eta: float = 1.0
    order: Literal[1, 2] = 1
    repeats: int = 1
    wipe: bool = False
    feature: str = "SDEdit"
    batch_index: tuple[int, ...] | None = None


def paint_anew(request: SDEditRequest) -> tuple[Tensor, Spent]:
    """SDEdit, and inpainting.

    Returns:
        The painted LATENT samples and the cost.
    """
    coordinates = coordinates_of(request.model, request.feature)
    check_samples(request.model, request.samples)
    if request.mask is not None:
        samples = request.samples
        check_mask_fits(request.mask, request.model, samples, len(samples))
    guider = BranchGuider(request.model)
    guider.set_conds(request.positive, request.negative)
    guider.set_source(request.positive, request.negative)
    guider.set_cfg(request.cfg)
    draw = seeded(request.seed, request.batch_index)
    sigmas = rising_sigmas(coordinates, request.levels)

    def algorithm(session: Session) -> Tensor:
        x0, mask = session.x0, request.mask
        painted = sdedit(
            x0,
            sigmas,
            session.denoiser(session.target),
            draw=draw,
            mask=None if mask is None else latent_mask(mask, request.model, x0).to(x0),
            eta=request.eta,
            order=request.order,
            repeats=request.repeats,
            wipe=request.wipe,
            on_step=session.on_step,
        )
        restored = session.restore(painted, x0, request.samples)
        return restored.to(comfy.model_management.intermediate_device())

    total = request.repeats * (len(request.levels) - 1)
    levels = host_levels(coordinates, sigmas)
    return run(guider, request.samples, levels, algorithm, coordinates=coordinates, total=total)
