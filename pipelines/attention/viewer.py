"""Where each word of a prompt is looked at in a picture: one map a word, from its recorded chain.

The source's network is shown the chain at some of its levels, as an edit's source row would be, and
the maps of its words (`word_maps`) are added up. Where an inversion kept the attention already, it
need not run again.

References:
    Tang et al. 2022, What the DAAM: Interpreting Stable Diffusion Using Cross Attention,
        arXiv:2210.04885, section 3 (maps summed over steps, layers and heads)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import PalimpsestError
from ..schedule import Moment, moment_at
from ..trajectory import Trajectory
from .bank import place_of
from .features import Features
from .hooks import QKV, Hooks, Kind, Role, Site, check_part, inside_part
from .word_maps import WORDED, Gathered, enlarged, looked_at, source_map


@dataclass(frozen=True, eq=False)
class Look:
    """What is looked at: a control that reads the source's words and changes nothing.

    Attributes:
        columns: [1, S, W] indicator of the tokens of every word, or group of words.
        layers: Part of the transformer blocks, as fractions of them.
        every: Look into layers of all sizes; else into those of `word_maps.looked_at`.
    """

    acts_in: ClassVar[frozenset[Kind]] = WORDED

    columns: Tensor
    layers: tuple[float, float] = (0.0, 1.0)
    every: bool = False

    def __post_init__(self) -> None:
        check_part(self.layers, "The layers of Attention Maps")

    def source_role(self, role: Role) -> Role | None:
        """Only where the guidance sees the prompt are there words."""
        return role if role == "cond" else None

    def active(self, at: Moment) -> bool:
        """In every step that is shown to it."""
        return True

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether words are looked for here."""
        inside = site.kind in WORDED and inside_part(site.layer, site.layers, self.layers)
        return inside and (self.every or looked_at(site))

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """Queries and keys."""
        return QKV(own.q, own.k, None)

    def terms(self, own: QKV, source: QKV | None, site: Site, at: Moment) -> None:
        """It leaves all attention alone."""


@dataclass
class Viewer:
    """Maps while they are gathered; made and dropped by one view.

    Attributes:
        look: What is looked at.
        at: The step that is shown.
        gathered: The maps so far.
    """

    look: Look
    at: Moment
    gathered: Gathered

    def record(self, site: Site, qkv: QKV) -> None:
        """Add the maps of one attention; a hook that changes nothing."""
        if site.role == "cond" and self.look.reads(site, self.at):
            self.gathered.add(source_map(qkv, self.look.columns, site))


def view_words(
    trajectory: Trajectory,
    look: Look,
    source: Callable[[Hooks], Denoiser],
    steps: Iterable[int],
    *,
    features: Features | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """[B, W, h, w] the map of every word of every picture, 0 to 1, its largest value 1.

    Args:
        trajectory: The recorded chain.
        look: What is looked at.
        source: Gives the source's conditional row with hooks in it.
        steps: Counted from the noisiest level.
        features: What the inversion kept of this source; its steps need not run.
        on_step: Told how many steps are done.

    Raises:
        PalimpsestError: If no attention was looked at.
    """
    gathered = Gathered(tuple(trajectory.start.shape[-2:]))
    for done, step in enumerate(steps):
        viewer = Viewer(look, moment_at(trajectory.sigmas, step), gathered)
        if features is not None and features.serve(look, viewer.at):
            _replay(features, viewer)
        else:
            chain = trajectory.latents[trajectory.steps - step]
            source(Hooks(viewer.record))(chain, viewer.at.sigma)
        if on_step:
            on_step(done + 1)
    if gathered.empty:
        raise PalimpsestError(
            "Attention Maps has no layer to look into, or no step: widen start and end, or the "
            "layers."
        )
    maps = enlarged(gathered.total, gathered.size)
    return maps / maps.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def _replay(features: Features, viewer: Viewer) -> None:
    """Show the viewer what was kept of its step."""
    sites = {place_of(site): site for site in features.every}
    for site, qkv in features.read(viewer.at.step).items():
        whole = sites[place_of(site)]
        if whole.kind in WORDED and qkv.q is not None and qkv.k is not None:
            viewer.record(whole, qkv)


def steps_between(steps: int, window: tuple[float, float], count: int) -> list[int]:
    """At most `count` of the steps of a window, evenly spread.

    Args:
        steps: Of the whole chain.
        window: Its two ends, as fractions of the steps.
        count: How many.
    """
    check_part(window, "The steps of Attention Maps")
    first, end = (int(steps * bound) for bound in window)
    inside = range(first, max(end, min(first + 1, steps)))
    if len(inside) <= count:
        return list(inside)
    return [inside[int((i + 0.5) * len(inside) / count)] for i in range(count)]
