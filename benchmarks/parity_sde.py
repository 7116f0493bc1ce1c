"""The SDE family beside the published code: recorded draws, and their grid, borders and ramp.

The published SDE-Drag steps by 1000 // N timesteps over a grid that is a rounded linspace, so that
a step may start at one timestep and its chain at the next. In variance-preserving latents nothing
shows; here every step is taken between its own two levels and carried over to the grid's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..pipelines.copy_paste import Brush, Cell, Move, copy_paste
from ..pipelines.correction import CYCLE, UNCORRECTED, Correction
from ..pipelines.couplings import OnStep, markov, one_noise
from ..pipelines.denoiser import Denoiser, Guidance, RowCount, constant, ramp
from ..pipelines.drag import drag, plan
from ..pipelines.editing import Branches, Edit, Edited
from ..pipelines.noise import Draw
from ..pipelines.schedule import sigma_from_alpha, vp_scale
from ..pipelines.sdedit import sdedit
from ..pipelines.trajectory import Recipe, Trajectory
from .golden import Case, Folder, Result, error, input_latent

CELL = 8


def replay(draws: Iterator[Tensor]) -> Draw:
    """Recorded draws in their order, in the shape in which they are asked for."""
    return lambda like: next(draws).reshape(like.shape).to(like)


def recorded_draws(case: Case) -> Iterator[Tensor]:
    """The draws of a case by their numbers."""
    return iter([case.tensors[key] for key in sorted(case.tensors) if key.startswith("draw_")])


def published_brush(case: Case) -> Brush:
    """How the case copies, the last row and column left alone."""
    settings = case.settings
    radius = settings["r"] if "r" in settings else settings["adapt_r"]
    return Brush(radius, settings.get("alpha", 1.1), settings["img_scale"], full_border=False)


def run_copy_paste(_folder: Folder, case: Case) -> Result:
    """Copy-Paste alone, on a variance-preserving latent."""
    ends = zip(case.tensors["source"].tolist(), case.tensors["target"].tolist(), strict=True)
    moves = [Move(i, tuple(source), tuple(target)) for i, (source, target) in enumerate(ends)]
    # At sigma 0 fresh noise has the variance 1 that it has in these coordinates.
    draw = replay(recorded_draws(case))
    ours = copy_paste(case.tensors["input"], moves, 0.0, brush=published_brush(case), draw=draw)
    return Result({"output": error(ours, case.tensors["output"])}, 0)


@dataclass(frozen=True, eq=False)
class Grid:
    """Levels of a case, its lowest first, and how far the published steps leap.

    Attributes:
        timesteps: [k+1] rising.
        alphas: [train steps] cumulative alphas.
        leap: Timesteps per published step.
    """

    timesteps: Tensor
    alphas: Tensor
    leap: int

    @classmethod
    def of(cls, folder: Folder, case: Case, steps: int) -> "Grid":
        """The lowest `steps` + 1 levels of a case."""
        rising = torch.tensor(sorted(case.settings["timesteps"]))[: steps + 1]
        return cls(rising, folder.alphas_cumprod.double(), 1000 // case.settings["steps"])

    def sigma(self, timestep: Tensor) -> Tensor:
        """Noise level of a timestep."""
        return sigma_from_alpha(self.alphas[timestep])

    def over(self, x: Tensor, timestep: Tensor, other: Tensor) -> Tensor:
        """The same variance-preserving latent, read at another timestep."""
        return x * (self.alphas[timestep] / self.alphas[other]).sqrt().float()

    def record(self, x0: Tensor, draw: Draw) -> Trajectory:
        """The published Markov chain; `x0` at the lowest level."""
        latents = [x0]
        for low, high in pairwise(self.timesteps):
            levels = self.sigma(torch.stack([low, low + self.leap]))
            x = markov(latents[-1], levels, draw)[-1]
            latents.append(self.over(x, low + self.leap, high))
        chain = Recipe("markov", eta=1.0)
        return Trajectory(torch.stack(latents), self.sigma(self.timesteps), x0, chain)


@dataclass(frozen=True, eq=False)
class PublishedWalk(Edit):
    """An edit whose steps leap as the published ones do."""

    grid: Grid | None = None

    def run(self, on_step: OnStep | None = None, *, start: Tensor | None = None) -> Edited:
        """Walk down; `on_step` sees the latent at the grid's level."""
        grid, steps = self.grid, self.trajectory.steps
        x = self.trajectory.start if start is None else start
        for level in range(steps, 0, -1):
            high, low = grid.timesteps[level], grid.timesteps[level - 1]
            landing = high - grid.leap
            chain = self.trajectory.latents[level]
            below = grid.over(self.trajectory.latents[level - 1], low, landing)
            short = Trajectory(
                torch.stack([below, chain]),
                grid.sigma(torch.stack([landing, high])),
                below,
                self.trajectory.recipe,
            )
            step = Edit(short, self.branches, self.correction, self.eta, mask=self.mask)
            stepped = step.step(0, x, chain)
            x = grid.over(stepped.latent, landing, low)
            if on_step:
                on_step(steps - level + 1, x, stepped.denoised)
        return Edited(x, None)


def _denoiser(folder: Folder, case: Case, cfg: Guidance, rows: RowCount) -> Denoiser:
    prompts = folder.prompt(case.settings["prompt"]), folder.prompt("")
    return folder.unet.denoiser(*prompts, cfg=cfg, rows=rows)


def run_cycle(folder: Folder, case: Case) -> Result:
    """Cycle-SDE of an untouched latent: every recorded level, and the way back."""
    rows, steps = RowCount(), len(case.settings["timesteps"]) - 1
    grid = Grid.of(folder, case, steps)
    scale = vp_scale(grid.sigma(grid.timesteps))
    x0 = input_latent(folder, case)
    trajectory = grid.record(x0 / scale[0], replay(iter(case.tensors["noise"])))
    # Two objects: the published code computes both branches, and what it leaves is rounding.
    cfg = constant(case.settings["guidance_scale"])
    branches = Branches(*(_denoiser(folder, case, cfg, rows) for _ in range(2)))
    walked: list[Tensor] = []
    walk = PublishedWalk(trajectory, branches, CYCLE, 1.0, grid=grid)
    walk.run(lambda _i, x, _d: walked.append(x))
    back = torch.cat(walked) * scale[:-1].flip(0).view(-1, 1, 1, 1)
    chain = trajectory.latents.flatten(0, 1) * scale.view(-1, 1, 1, 1)
    return Result(
        {
            "forward_sample": error(chain[:-1], case.tensors["forward_sample"]),
            "forward_x_prev": error(chain[1:], case.tensors["forward_x_prev"]),
            "backward": error(back, case.tensors["backward"]),
            "final": error(back[-1:], case.tensors["final"]),
        },
        rows.rows,
    )


def run_step(folder: Folder, case: Case) -> Result:
    """One step of Cycle-SDE, or of the published ODE, which takes nothing of the residual."""
    rows, settings = RowCount(), case.settings
    high = torch.tensor(settings["timestep"])
    grid = Grid(torch.stack([high]), folder.alphas_cumprod.double(), 1000 // settings["steps"])
    levels = torch.stack([high - grid.leap, high])
    scale = vp_scale(grid.sigma(levels))
    names = ("forward_sample", "forward_x_prev", "sample")  # the cleaner one, the noisier one
    below, chain, x = (
        case.tensors[name] / size for name, size in zip(names, scale[[0, 1, 1]], strict=True)
    )
    short = Trajectory(torch.stack([below, chain]), grid.sigma(levels), below, Recipe("markov"))
    cfg = constant(settings["guidance_scale"])
    branches = Branches(*(_denoiser(folder, case, cfg, rows) for _ in range(2)))
    correction: Correction = CYCLE if settings["sde"] else UNCORRECTED
    whole = Edit(short, branches, correction, settings.get("eta", 0.0))
    ours = whole.step(0, x, chain).latent * scale[0]
    return Result({"out": error(ours, case.tensors["out"])}, rows.rows)


def run_drag(folder: Folder, case: Case) -> Result:
    """SDE-Drag: what was noised, pasted and painted in every drag step."""
    rows, settings = RowCount(), case.settings
    grid = Grid.of(folder, case, int(settings["drag_t"] * settings["steps"]))
    scale = vp_scale(grid.sigma(grid.timesteps))
    draw = replay(recorded_draws(case))
    cfg = ramp(grid.sigma(grid.timesteps), settings.get("guidance_scale", 3.0), overshoot=True)
    branches = Branches(*(_denoiser(folder, case, cfg, rows) for _ in range(2)))
    mask = (case.tensors["mask64"] > 128).float()[None, None]
    noised: list[Tensor] = []
    painted: list[Tensor] = []

    def record(x: Tensor) -> Trajectory:
        trajectory = grid.record(x, draw)
        noised.append(trajectory.start * scale[-1])
        return trajectory

    x0 = input_latent(folder, case) / scale[0]
    drag(
        x0,
        plan(_cells(settings), settings["step_size"], still=True),
        record=record,
        edit=lambda chain: PublishedWalk(chain, branches, CYCLE, 1.0, mask=mask, grid=grid),
        brush=published_brush(case),
        draw=draw,
        mask_start=False,
        on_drag=lambda _i, x: painted.append(x * scale[0]),
    )
    errors = {"final": error(painted[-1], case.tensors["final"])}
    for name, ours in (("forward_noised", noised), ("backward", painted)):
        for i, x in enumerate(ours):
            errors[f"{name}_{i:02}"] = error(x, case.tensors[f"{name}_{i:02}"])
    return Result(errors, rows.rows)


def _cells(settings: dict[str, Any]) -> list[tuple[Cell, Cell]]:
    """Pairs in latent cells, also those that a person would be told to mend."""
    ends = zip(settings["source_px"], settings["target_px"], strict=True)
    return [tuple((x // CELL, y // CELL) for x, y in pair) for pair in ends]


def run_sdedit(_folder: Folder, case: Case) -> Result:
    """The released SDEdit loop, its kept region a level late, on its toy model."""
    settings, tensors, rows = case.settings, case.tensors, RowCount()
    levels, repeats = settings["total_noise_levels"], settings["sample_step"]
    alphas = torch.cumprod(1 - tensors["betas"].double(), 0)[:levels]
    sigmas = torch.cat([torch.zeros(1, dtype=torch.float64), sigma_from_alpha(alphas)])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        rows.add(len(x))
        index = (sigmas[1:] - sigma).abs().argmin()
        z = torch.nn.functional.conv2d(x * vp_scale(sigma), tensors["conv_weight"], padding=1)
        return x - sigma * torch.tanh(z + tensors["tbias"].view(1, -1, 1, 1) * index / 1000)

    def a_level_late(x0: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
        chain = one_noise(x0, sigmas, noise)
        late = (vp_scale(sigmas[1:]) / vp_scale(sigmas[:-1])).view(-1, 1, 1, 1, 1).float()
        return torch.cat([chain[1:] * late, chain[-1:]])

    # The published loop also draws for the step that adds no noise.
    draws = tensors["noise_draws"].unflatten(0, (repeats, levels + 1))[:, :levels].flatten(0, 1)
    guide = (2 * tensors["img01"] - 1).repeat(settings["n"], 1, 1, 1)
    ours = sdedit(
        guide,
        sigmas,
        denoise,
        draw=replay(iter(draws)),
        mask=(tensors["mask"] != 1).float()[None],
        repeats=repeats,
        kept=a_level_late,
    )
    return Result({"final": error(ours, tensors["final"])}, rows.rows)
