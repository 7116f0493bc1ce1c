"""The SDE family beside the published code: recorded draws, and their grid, borders and ramp.

The published SDE-Drag steps by 1000 // N timesteps over a grid that is a rounded linspace, so that
a step may start at one timestep and its chain at the next. In variance-preserving latents nothing
shows; here every level has coordinates of its own, in which a step lands where the next one starts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...pipelines.copy_paste import Brush, Cell, Move, copy_paste
from ...pipelines.correction import CYCLE, UNCORRECTED, Correction
from ...pipelines.couplings import markov, one_noise
from ...pipelines.denoiser import Denoiser, Guidance, RowCount, constant, ramp
from ...pipelines.drag import DragStep, drag, plan
from ...pipelines.editing import Branches, Edit
from ...pipelines.noise import Draw
from ...pipelines.rows import Rows
from ...pipelines.schedule import sigma_from_alpha, vp_scale
from ...pipelines.sdedit import sdedit
from ...pipelines.trajectory import Recipe, Trajectory
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

    @cached_property
    def sigmas(self) -> Tensor:
        """[k+1] noise level of every timestep, as the model knows it."""
        return self.sigma(self.timesteps)

    @cached_property
    def levels(self) -> Tensor:
        """[k+1] what stands for it here: their quotients are those of the published steps."""
        quotients = self.sigma(self.timesteps[1:] - self.leap) / self.sigmas[1:]
        return self.sigmas[-1] * _down(quotients)

    @cached_property
    def stretch(self) -> Tensor:
        """[k+1] a latent here over x: where a step lands and where the next starts is one z."""
        lows = self.alphas[self.timesteps[:-1]]
        return _down((lows / self.alphas[self.timesteps[1:] - self.leap]).sqrt())

    @cached_property
    def scale(self) -> Tensor:
        """[k+1] float32, z over what stands for it here."""
        return (vp_scale(self.sigmas) / self.stretch).float()

    def chain(self, x0: Tensor, draw: Draw) -> Trajectory:
        """The published Markov chain; `x0` at the lowest level."""
        z = [x0 * self.scale[0]]
        for low in self.timesteps[:-1]:
            ends = self.sigma(torch.stack([low, low + self.leap]))
            below, above = vp_scale(ends)
            z.append(markov(z[-1] / below, ends, draw)[-1] * above)
        chain = torch.stack(z) / self.scale.view(-1, 1, 1, 1, 1)
        return Trajectory(chain, self.levels, x0, Recipe("markov", eta=1.0))

    def denoiser(self, folder: Folder, case: Case, cfg: Guidance, rows: RowCount) -> Denoiser:
        """The guided model, asked in these coordinates; `cfg` goes by the model's own levels."""
        prompts = folder.prompt(case.settings["prompt"]), folder.prompt("")
        inner = folder.unet.denoiser(*prompts, cfg=cfg, rows=rows)

        def denoise(x: Tensor, level: Tensor) -> Tensor:
            k = int((self.levels - level).abs().argmin())
            stretch = float(self.stretch[k])
            return stretch * inner(x / stretch, self.sigmas[k])

        return denoise


def _down(quotients: Tensor) -> Tensor:
    """[k+1] products of [k] quotients from each place to the last, where it is 1."""
    return torch.cat([quotients.flip(0).cumprod(0).flip(0), quotients.new_ones(1)])


def run_cycle(folder: Folder, case: Case) -> Result:
    """Cycle-SDE of an untouched latent: every recorded level, and the way back."""
    rows, steps = RowCount(), len(case.settings["timesteps"]) - 1
    grid = Grid.of(folder, case, steps)
    x0 = input_latent(folder, case) / grid.scale[0]
    trajectory = grid.chain(x0, replay(iter(case.tensors["noise"])))
    # Two objects: the published code computes both branches, and what it leaves is rounding.
    cfg = constant(case.settings["guidance_scale"])
    branches = Branches(*(grid.denoiser(folder, case, cfg, rows) for _ in range(2)))
    walked: list[Tensor] = []
    Edit(trajectory, branches, CYCLE, 1.0).run(lambda _i, x, _d: walked.append(x))
    scale = grid.scale.view(-1, 1, 1, 1)
    back = torch.cat(walked) * scale[:-1].flip(0)
    chain = trajectory.latents.flatten(0, 1) * scale
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
    high, leap = settings["timestep"], 1000 // settings["steps"]
    grid = Grid(torch.tensor([high - leap, high]), folder.alphas_cumprod.double(), leap)
    names = ("forward_sample", "forward_x_prev", "sample")  # the cleaner one, the noisier one
    below, chain, x = (
        case.tensors[name] / size for name, size in zip(names, grid.scale[[0, 1, 1]], strict=True)
    )
    short = Trajectory(torch.stack([below, chain]), grid.levels, below, Recipe("markov"))
    cfg = constant(settings["guidance_scale"])
    branches = Branches(*(grid.denoiser(folder, case, cfg, rows) for _ in range(2)))
    correction: Correction = CYCLE if settings["sde"] else UNCORRECTED
    whole = Edit(short, branches, correction, settings.get("eta", 0.0))
    ours = whole.step(0, Rows(x, chain)).target * grid.scale[0]
    return Result({"out": error(ours, case.tensors["out"])}, rows.rows)


def run_drag(folder: Folder, case: Case) -> Result:
    """SDE-Drag: what was noised, pasted and painted in every drag step."""
    rows, settings = RowCount(), case.settings
    grid = Grid.of(folder, case, int(settings["drag_t"] * settings["steps"]))
    draw = replay(recorded_draws(case))
    cfg = ramp(grid.sigmas, settings.get("guidance_scale", 3.0), overshoot=True)
    branches = Branches(*(grid.denoiser(folder, case, cfg, rows) for _ in range(2)))
    mask = (case.tensors["mask64"] > 128).float()[None, None]
    noised: list[Tensor] = []
    painted: list[Tensor] = []

    def chain_of(x: Tensor) -> Trajectory:
        trajectory = grid.chain(x, draw)
        noised.append(trajectory.start * grid.scale[-1])
        return trajectory

    drag(
        input_latent(folder, case) / grid.scale[0],
        plan(_cells(settings), settings["step_size"], still=True),
        chain_of=chain_of,
        step=DragStep(branches, 1.0, published_brush(case), draw, mask, mask_start=False),
        on_drag=lambda _i, x: painted.append(x * grid.scale[0]),
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
