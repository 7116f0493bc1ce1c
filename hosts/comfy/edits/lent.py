"""A session of ComfyUI and the prompts of an edit, as what an edit along a trajectory asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ....pipelines.attention.hooks import Role
from ....pipelines.denoiser import Denoiser
from ....pipelines.lending import Asked, Beside
from ....pipelines.schedule import Scale
from ..beside import RowsBeside, can_run_beside
from ..fingerprint import conditioning_key, features_key, guided_key
from ..guidance import Conditioning, Conds
from ..session import Session
from ..value_patch import with_values

if TYPE_CHECKING:
    from .edit import EditRequest


@dataclass(frozen=True, eq=False)
class Lent:
    """A session and the prompts of a request, as a `lending.Lender`."""

    request: EditRequest
    session: Session

    @property
    def scale(self) -> Scale:
        """How the model family scales its input."""
        return self.session.coordinates.scale

    @property
    def cfg(self) -> float:
        """Guidance scale of the edit."""
        return self.request.cfg

    @property
    def alone(self) -> bool:
        """Whether nothing of other nodes takes part in the calls, and a branch is one entry.

        What counts calls, or keeps something from one to the next, must see each to its end.
        """
        single = all(len(entries) == 1 for entries in self.session.target.values())
        return single and self.session.levels_per_call(2, self.session.source) > 1

    def pairs(self, source: Asked, target: Asked, rows: Mapping[Role, Role]) -> bool:
        """Where no other node takes part, and both are a plain prompt of the same form."""
        mapped = source.values is not None or target.values is not None
        if mapped or target.conditional is not None or not self.alone:
            return False
        return can_run_beside(self.session.source, self.session.target, rows)

    def denoiser(self, asked: Asked) -> Denoiser:
        """The guided denoiser of a branch."""
        conds = self._conds(asked)
        if asked.negative is not None:
            conds = self.session.with_negative(conds, asked.negative)
        return self._under(asked).denoiser(
            conds,
            asked.hooks,
            guidance=asked.guidance,
            mix=asked.mix,
            conditional=asked.conditional,
            beside=asked.beside and self._beside(asked.beside),
        )

    def _beside(self, beside: Beside) -> RowsBeside:
        conds, negative = self.session.source, beside.source.negative
        if negative is not None:
            conds = self.session.with_negative(conds, negative)
        return RowsBeside(conds, beside.place)

    def recorder(self, asked: Asked, roles: Sequence[Role]) -> Denoiser:
        """Some rows of a branch alone; within `EditRequest.walking` gradients flow through them."""
        conds = self._conds(asked)
        if asked.negative is None or "uncond" not in roles:
            return self._under(asked).recorder(conds, asked.hooks, roles=roles)
        conds_at = self.session.with_negative(conds, asked.negative)

        def record(x: Tensor, sigma: Tensor) -> Tensor:
            here = self._under(asked).recorder(conds_at(sigma), asked.hooks, roles=roles)
            return here(x, sigma)

        return record

    def one_row(self, asked: Asked) -> bool:
        """Whether the prompt of a branch is the negative prompt."""
        if asked.negative is not None or asked.values is not None:
            return False
        key = conditioning_key(self._prompt(asked))
        return bool(key) and key == conditioning_key(self.request.negative)

    def key(self, asked: Asked) -> str:
        """What tells the guided prediction of a branch from others; "" where nothing does."""
        request = self.request
        if asked.negative is not None or asked.values is not None:
            return ""
        positive = self._prompt(asked)
        # A guidance that is not the edit's own is the same at every level here.
        cfg = request.cfg if asked.guidance is None else asked.guidance(1.0)
        return guided_key(request.model, positive, request.negative, cfg)

    def features_key(self) -> str:
        """What the source's features depend on besides the chain."""
        return features_key(self.request.model, self.request.source)

    def _prompt(self, asked: Asked) -> Conditioning:
        return self.request.source if asked.prompt == "source" else self.request.target

    def _conds(self, asked: Asked) -> Conds:
        return self.session.source if asked.prompt == "source" else self.session.target

    def _under(self, asked: Asked) -> Session:
        """The session, with values mapped where the branch maps them."""
        return self.session if asked.values is None else with_values(self.session, asked.values)
