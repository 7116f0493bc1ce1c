"""A diffusers UNet and the prompts of an edit, lent to `pipelines.edit_along`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...pipelines.attention.hooks import Role
from ...pipelines.denoiser import Denoiser, RowCount
from ...pipelines.lending import Asked, Beside
from ...pipelines.schedule import Scale, vp_scale
from .prompt import Prompts, RowsBeside

if TYPE_CHECKING:
    from .unet import DiffusersUNet


@dataclass(frozen=True, eq=False)
class Lent:
    """A UNet and the prompts of an edit, as a `lending.Lender`."""

    unet: DiffusersUNet
    prompts: Prompts
    cfg: float
    rows: RowCount | None
    scale: Scale = vp_scale
    alone: bool = True

    def pairs(self, source: Asked, target: Asked, rows: Mapping[Role, Role]) -> bool:
        """Where no values are mapped: a row has a mapping of its own."""
        return source.values is None and target.values is None and target.conditional is None

    def denoiser(self, asked: Asked) -> Denoiser:
        """The guided denoiser of a branch."""
        positive, negative = self.prompts.of(asked), self.prompts.below(asked)
        cfg = self.cfg if asked.guidance is None else asked.guidance
        return self.unet.denoiser(
            positive,
            negative,
            cfg=cfg,
            hooks=asked.hooks,
            mix=asked.mix,
            rows=self.rows,
            conditional=asked.conditional,
            beside=asked.beside and self._beside(asked.beside),
        )

    def _beside(self, beside: Beside) -> RowsBeside:
        prompts = {
            "cond": self.prompts.of(beside.source),
            "uncond": self.prompts.below(beside.source),
        }
        return RowsBeside(prompts, beside.place)

    def recorder(self, asked: Asked, roles: Sequence[Role]) -> Denoiser:
        """Some rows of a branch alone."""
        every = {"cond": self.prompts.of(asked), "uncond": self.prompts.below(asked)}
        wanted = {role: every[role] for role in roles}
        return self.unet.rows_of(
            wanted, hooks=asked.hooks, rows=self.rows, gradients=asked.gradients
        )

    def one_row(self, asked: Asked) -> bool:
        """Whether the prompt of a branch is the negative prompt."""
        return self.prompts.one_row(asked)

    def key(self, asked: Asked) -> str:
        """What tells the guided prediction of a branch from others; "" where nothing does."""
        return self.prompts.key(asked, self.cfg)

    def features_key(self) -> str:
        """What the source's features depend on besides the chain."""
        return self.prompts.source.key
