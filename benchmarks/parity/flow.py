"""Flow editing beside the published codes: FlowEdit, FlowAlign, Uni-Inv, Uni-Edit, ConsistEdit.

They walk z = (1 - t) x0 + t n and store velocities v = n - x0; ours is x = z / (1 - t).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ...hosts.diffusers.transformer import PATCH, Words
from ...pipelines.aligned import FLOW_EDIT, Manner
from ...pipelines.attention.bank import Bank
from ...pipelines.attention.consist_edit import ConsistEdit
from ...pipelines.inversion.fresh_noise import fresh_noise
from ...pipelines.inversion.uni_inv import uni_inv
from ...pipelines.schedule import FLOW, flow_scale, moment_at
from ...pipelines.trajectory import Trajectory
from ...pipelines.uni_edit import uni_edit
from .flow_models import HOSTS, Algorithm, Branch, Lesson, Pair
from .golden import Case, Folder, Result, error
from .sde import replay

#: Pure noise has no finite sigma. This near to it float32 cannot tell its times from 1.
TOP = 1 - 2.0**-24


@dataclass(frozen=True, eq=False)
class Published:
    """A case in our words: what is run, and what must come out.

    Attributes:
        lesson: The model, the picture and the prompts.
        algorithm: Ours.
        wanted: The published tensors by the names of what the algorithm gives.
    """

    lesson: Lesson
    algorithm: Algorithm
    wanted: dict[str, Tensor]


def run_flow(folder: Folder, case: Case) -> Result:
    """Run a case in both hosts."""
    published = reader_of(case)(folder.model_path, case)
    errors, rows = {}, set()
    for host, run in HOSTS.items():
        found, spent = run(published.lesson, published.algorithm)
        rows.add(spent)
        for name, wanted in published.wanted.items():
            errors[f"{name} ({host})"] = error(found[name], wanted.view_as(found[name]))
    return Result(errors, max(rows))


def reader_of(case: Case) -> Callable[[Path, Case], Published] | None:
    """What makes a case ours."""
    if "method" not in case.settings:
        return one_call
    return {
        "FlowEdit": flow_edit,
        "FlowAlign": flow_align,
        "Uni-Inv": inversion,
        "Uni-Inv + Uni-Edit": inverted_edit,
        "ConsistEdit, image q and k from the source": consist_edit,
        "the same loop without control": consist_edit,
    }.get(case.method)


def incomparable(case: Case) -> str:
    """Why a case cannot be run by us; "" where it can."""
    if case.settings.get("method") == "Uni-Inv" and not case.settings["zero_init"]:
        return "its first call is at t = 0, where a denoiser gives the picture and no velocity"
    return ""


def sigma_of(t: Tensor) -> Tensor:
    """float64 sigmas of published times."""
    t = t.double().clamp(max=TOP)
    return t / (1 - t)


def _times(case: Case) -> Tensor:
    """[N+1] falling times of a case."""
    if "times" in case.tensors:
        return case.tensors["times"]
    return torch.cat([case.tensors["timesteps"] / 1000, torch.zeros(1)])


def _words(case: Case, whose: str, guidance: float | None = None) -> Words:
    tensors = case.tensors
    return Words(tensors[f"{whose}_embeds"], tensors[f"{whose}_pooled"], guidance)


def _lesson(
    model: Path, case: Case, times: Tensor, source: Branch, target: Branch | None = None
) -> Lesson:
    part = model / case.settings["model"]
    return Lesson(part, case.tensors["x0"], times.float(), source, target or source)


def one_call(model: Path, case: Case) -> Published:
    """A single evaluation: the model is the same."""
    tensors, t = case.tensors, case.tensors["t"]
    sigma = sigma_of(t[0])
    words = Words(tensors["embeds"], tensors["pooled"], case.settings["guidance"])

    def algorithm(lent: Pair) -> dict[str, Tensor]:
        z = tensors["z"]
        x = z / flow_scale(sigma).to(z)
        return {"v": (z - lent.source(x, sigma)) / t[0]}

    levels = torch.stack([t[0], torch.zeros(())])
    part = model / case.settings["model"]
    lesson = Lesson(part, tensors["z"], levels, Branch(words), Branch(words))
    return Published(lesson, algorithm, {"v": tensors["v"]})


def flow_edit(model: Path, case: Case) -> Published:
    """FlowEdit: guidance is embedded in Flux, and of two rows in SD 3."""
    settings, flux = case.settings, case.settings["model"] == "flux"
    branches = []
    for whose, scale in (("src", settings["guidance_src"]), ("tgt", settings["guidance_tgt"])):
        if flux:
            branches.append(Branch(_words(case, whose, scale)))
        else:
            branches.append(Branch(_words(case, whose), _words(case, "neg"), scale))
    times = _times(case)[-settings["n_max"] - 1 :]
    manner = replace(FLOW_EDIT, plain_steps=settings["n_min"])
    return _walked(model, case, times, branches, manner, settings["n_avg"])


def flow_align(model: Path, case: Case) -> Published:
    """FlowAlign: the target is guided away from the source prompt where it is asked."""
    source, target = _words(case, "src"), _words(case, "tgt")
    branches = [Branch(source), Branch(target, source, case.settings["omega"])]
    return _walked(model, case, _times(case), branches, Manner(zeta=case.settings["zeta"]), 1)


def _walked(
    model: Path,
    case: Case,
    times: Tensor,
    branches: list[Branch],
    manner: Manner,
    draws: int,
) -> Published:
    """An edit without inversion, on the recorded draws."""
    sigmas, x0 = sigma_of(times.flip(0)), case.tensors["x0"]

    def noises() -> Iterator[Tensor]:
        yield from case.tensors["noise_draws"]
        yield torch.zeros_like(x0)  # of the plain steps, where there are none

    def algorithm(lent: Pair) -> dict[str, Tensor]:
        made = fresh_noise(
            lent.source,
            x0,
            sigmas,
            replay(noises()),
            manner=manner,
            whole=case.settings["steps"],
            draws=draws,
        )
        trajectory = Trajectory(made.latents, sigmas, x0, made.recipe, carried=made.carried)
        return {"final": made.carried[0].edit(trajectory, lent.target).run().latent}

    lesson = _lesson(model, case, times, *branches)
    return Published(lesson, algorithm, {"final": case.tensors["final"]})


def inversion(model: Path, case: Case) -> Published:
    """Uni-Inv, whose first velocity is none."""
    settings, rising = case.settings, _rising(case)
    sigmas, x0 = sigma_of(rising), case.tensors["x0"]
    words = _words(case, "src", settings["guidance"])

    def algorithm(lent: Pair) -> dict[str, Tensor]:
        made = uni_inv(lent.source, x0, sigmas, family=FLOW)
        return {"x_top": made.latents[-1] * flow_scale(sigmas[-1]).to(x0)}

    lesson = _lesson(model, case, rising.flip(0), Branch(words))
    return Published(lesson, algorithm, {"x_top": case.tensors["x_top"]})


def inverted_edit(model: Path, case: Case) -> Published:
    """Uni-Inv, and plain steps down from where it ended under Uni-Edit's guidance."""
    settings, rising = case.settings, _rising(case)
    sigmas, x0 = sigma_of(rising), case.tensors["x0"]
    branches = [Branch(_words(case, whose, settings["guidance"])) for whose in ("src", "tgt")]

    def algorithm(lent: Pair) -> dict[str, Tensor]:
        made = uni_inv(lent.source, x0, sigmas, family=FLOW)
        guided = uni_edit(lent.target, lent.source, omega=settings["omega"], patch=PATCH)
        x = made.latents[-1]
        for high, low in pairwise(sigmas.flip(0)):
            c = float(low / high)
            x = c * x + (1 - c) * guided(x, high)
        scale = flow_scale(sigmas[-1]).to(x0)
        return {"x_mid": made.latents[-1] * scale, "final": x}

    lesson = _lesson(model, case, rising.flip(0), *branches)
    wanted = {name: case.tensors[name] for name in ("x_mid", "final")}
    return Published(lesson, algorithm, wanted)


def consist_edit(model: Path, case: Case) -> Published:
    """ConsistEdit, whose source is sampled beside its target: both from the same noise."""
    settings, times, walked = case.settings, _times(case), case.tensors["traj"]
    sigmas, scale = sigma_of(times), flow_scale(sigma_of(times)).to(walked)
    branches = [
        Branch(_words(case, whose), _words(case, "neg"), settings["guidance"])
        for whose in ("src", "tgt")
    ]
    control = ConsistEdit((0.0, settings["qk_steps"] / settings["steps"]))

    def algorithm(lent: Pair) -> dict[str, Tensor]:
        bank = Bank(control, leaves=False)
        source, target = (
            lent.seen("source", bank.recording),
            lent.seen("target", bank.injecting),
        )
        rows = [(walked[0] / scale[0]).split(1)]
        for step, (high, low) in enumerate(pairwise(sigmas)):
            bank.begin(moment_at(sigmas.flip(0), step))
            c, (own, edited) = float(low / high), rows[-1]
            guesses = source(own, high), target(edited, high)
            rows.append(
                [c * x + (1 - c) * guess for x, guess in zip(rows[-1], guesses, strict=True)]
            )
        return {
            "traj": torch.stack([torch.cat(pair) * s for pair, s in zip(rows, scale, strict=True)])
        }

    part = model / settings["model"]
    lesson = Lesson(part, walked[0, :1], times.float(), *branches)
    return Published(lesson, algorithm, {"traj": walked})


def _rising(case: Case) -> Tensor:
    """[N+1] times of an inversion, those of its part of the steps."""
    times, settings = case.tensors["times"], case.settings
    rising = times if times[0] < times[-1] else times.flip(0)
    return rising[: round(settings["alpha"] * settings["steps"]) + 1]
