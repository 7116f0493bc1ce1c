"""The picture of `blessing`: where particles start and end, and their divergence on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")  # no window

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FixedLocator, NullFormatter

from .toy import CURVE_BINS, END_BINS, MATCHED, MIXTURE, PRIORS, Prior, Walked, floor, oracle

if TYPE_CHECKING:
    from .__main__ import Row

#: Told apart also without red and green (Okabe & Ito).
ODE, SDE, MIDDLE, GROUND, PRIOR = "#d55e00", "#0072b2", "#009e73", "#d9d9d9", "#cc79a7"
WIDTH = 8 / (len(END_BINS) - 1)
NOISE = "noise level sigma, falling"

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 130,
}


def draw_figure(rows: Sequence[Row], particles: int, path: Path) -> None:
    """Draw the rows, measured with so many particles, into a file."""
    many = max(row.steps for row in rows)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 8.4), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=[1.25, 1], hspace=0.04)
        _draw_ends(above, [row for row in rows if row.steps == many])
        axes = below.subplots(1, 3)
        _draw_oracle(axes[0])
        _draw_ways(axes[1], [row for row in rows if row.steps == many], particles)
        _draw_steps(axes[2], rows, particles)
        figure.savefig(path)
        plt.close(figure)


def _draw_ends(figure: SubFigure, rows: Sequence[Row]) -> None:
    """Two panels per prior: the law at the start, and the histograms at the end."""
    axes = figure.subplots(2, len(rows), sharey="row", height_ratios=[0.6, 1])
    for row, (start, end) in zip(rows, axes.T, strict=True):
        _draw_prior(start, row.prior)
        _draw_end(end, row)
    axes[0, 0].set_ylabel("density, start")
    axes[1, 0].set_ylabel(f"density, end ({rows[0].steps} steps)")
    axes[0, 0].legend(loc="upper left", fontsize=8, handlelength=1.2)
    axes[1, 0].legend(loc="upper center", fontsize=8, handlelength=1.2)


def _draw_prior(axes: Axes, prior: Prior) -> None:
    z = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    axes.fill_between(z, _density(prior, z), color=PRIOR, alpha=0.45, lw=0, label="start")
    axes.plot(z, _density(MATCHED, z), color="black", lw=1, ls="--", label="expected")
    wrong = prior is not MATCHED
    axes.set_title(f"from {prior.name}" + (f", KL {prior.kl:.3f}" if wrong else ", as expected"))
    axes.set_xlim(-5, 5)
    axes.set_ylim(0, 0.95)
    axes.set_xlabel("z")


def _density(prior: Prior, z: torch.Tensor) -> np.ndarray:
    """The slope of the distribution function: a jump of the density stays a jump."""
    return np.gradient(prior.law.cdf(z).numpy(), z.numpy())


def _draw_end(axes: Axes, row: Row) -> None:
    true = MIXTURE.masses(END_BINS, torch.zeros((), dtype=torch.float64))
    edges = torch.linspace(-4, 4, len(END_BINS))
    axes.stairs(true / WIDTH, edges, fill=True, color=GROUND, label="data")
    for name, walked, color in (("ODE", row.ode, ODE), ("SDE", row.sde, SDE)):
        axes.stairs(walked.shares / WIDTH, edges, color=color, lw=1.3, label=name)
    notes = ("KL", "black"), (f"ODE {row.ode.kl:.4f}", ODE), (f"SDE {row.sde.kl:.4f}", SDE)
    for line, (text, color) in enumerate(notes):
        place = {"transform": axes.transAxes, "ha": "center", "fontsize": 8}
        axes.text(0.5, 0.57 - 0.09 * line, text, color=color, **place)
    axes.set_xlim(-4, 4)
    axes.set_xlabel("x")


def _draw_oracle(axes: Axes) -> None:
    """Closed form: an edited Gaussian on its way down, for three etas."""
    for eta, color in ((0.0, ODE), (0.5, MIDDLE), (1.0, SDE)):
        sigmas, values = zip(*oracle(200, eta)[:-1], strict=True)
        axes.plot(sigmas, values, color=color, label=f"eta {eta:g}")
    axes.set_title("an edited Gaussian, exact")
    _log_axes(axes, NOISE, [2, 1, 0.5, 0.2, 0.1], [0.4, 0.2, 0.1, 0.05, 0.02])
    axes.invert_xaxis()


def _draw_ways(axes: Axes, rows: Sequence[Row], particles: int) -> None:
    """The mixture from every other prior."""
    for name, color in (("ODE", ODE), ("SDE", SDE)):
        axes.plot([], [], color=color, label=name)
    for row, style in zip(rows[1:], ("-", "--", "-.", ":"), strict=True):
        for walked, color in ((row.ode, ODE), (row.sde, SDE)):
            _draw_way(axes, walked, color=color, ls=style)
        axes.plot([], [], color="black", ls=style, label=row.prior.name)
    # What a histogram of the true law scores on average, had every bin its share of particles.
    noise = len(CURVE_BINS) / (2 * particles)
    axes.axhspan(0, noise, color=GROUND, lw=0, label="noise of the histogram")
    axes.set_title("two Gaussians, from other starts, 1000 steps")
    _log_axes(axes, NOISE, [100, 10, 1, 0.1], [1, 0.1, 0.01, 0.001])
    axes.invert_xaxis()


def _draw_way(axes: Axes, walked: Walked, **look: str) -> None:
    sigmas, values = zip(*walked.curve, strict=True)
    axes.plot(sigmas[:-1], values[:-1], **look)  # the last level, 0, has no place on this axis


def _log_axes(axes: Axes, name: str, x: list[float], y: list[float]) -> None:
    """Logarithmic axes with plain numbers at the ticks `x` and `y`."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, ticks in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(name)
    axes.set_ylabel("KL (nats)")
    axes.legend(fontsize=8)


def _draw_steps(axes: Axes, rows: Sequence[Row], particles: int) -> None:
    """KL at the end against the number of steps: where the ODE is the better, and where not."""
    for prior, style in ((PRIORS[1], "--"), (MATCHED, "-")):
        ours = [row for row in rows if row.prior is prior]
        steps = [row.steps for row in ours]
        for way, color in (("ode", ODE), ("sde", SDE)):
            values = [getattr(row, way).kl for row in ours]
            label = f"{way.upper()} from {prior.name}"
            axes.plot(steps, values, color=color, ls=style, marker="o", ms=4, label=label)
    axes.axhspan(0, floor(particles), color=GROUND, lw=0, label="samples of the data")
    axes.set_title("two Gaussians, the end by number of steps")
    _log_axes(axes, "steps", steps, [1, 0.1, 0.01, 0.001])
    axes.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.93))  # below the dashed line
