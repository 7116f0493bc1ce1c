"""One source, many target prompts: an attention control for every row of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import PalimpsestError
from ..schedule import Moment
from .bank import Control
from .hooks import QKV, Role, Site
from .prompt_to_prompt import Mode, rewrite_prompt
from .tokens import PromptTokens, find_word, positions_of


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """The controls of a batch of target prompts, row by row; all read the same source.

    Attributes:
        controls: One for each row. They keep the same tensors of the same rows of the source.
    """

    controls: tuple[Control, ...]

    def source_role(self, role: Role) -> Role | None:
        """Which rows of the source the controls read."""
        return self.controls[0].source_role(role)

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether any of them reads the source at this site."""
        return any(control.reads(site, at) for control in self.controls)

    def active(self, at: Moment) -> bool:
        """Whether any of them reads the source in this step."""
        return any(control.active(at) for control in self.controls)

    def kept(self, site: Site, own: QKV) -> QKV:
        """What the controls read of the source."""
        return self.controls[0].kept(site, own)

    def terms(self, own: QKV, source: QKV, site: Site, at: Moment) -> tuple[QKV, ...]:
        """The controlled attention of every row, as one sum of batched attentions.

        Raises:
            PalimpsestError: If there are not as many rows as controls, or if their keys are not
                equally many.
        """
        rows = len(own.q)
        if rows != len(self.controls):
            raise PalimpsestError(
                f"The control is for {len(self.controls)} target prompts, {rows} rows are edited: "
                "connect the target conditioning of the same Prompt-to-Prompt node."
            )
        owns, sums = [], []
        for row, control in enumerate(self.controls):
            one, read = (_row(t, row) for t in (own, source))
            owns.append(one)
            idle = not control.reads(site, at)
            sums.append((one,) if idle else control.terms(one, read, site, at))
        return tuple(
            _joined(
                [
                    terms[i] if i < len(terms) else _nothing(one)
                    for one, terms in zip(owns, sums, strict=True)
                ]
            )
            for i in range(max(map(len, sums)))
        )


def rewrite_prompts(
    source: PromptTokens,
    targets: Sequence[PromptTokens],
    *,
    mode: Mode = "auto",
    cross_window: tuple[float, float] = (0.0, 0.4),
    self_window: tuple[float, float] = (0.0, 0.6),
    weights: Mapping[str, float] | None = None,
) -> PromptBatch:
    """The control that turns the picture of one prompt into those of several.

    Args:
        source: Describes the picture as it is.
        targets: Each describes it after an edit.
        mode: See `rewrite_prompt`, as for the other arguments.
        cross_window: Of all targets.
        self_window: Of all targets.
        weights: Act in the targets that have the word.

    Raises:
        PalimpsestError: As `rewrite_prompt`; also if no target has a word that has a weight.
    """
    factors = weights or {}
    for word in factors:
        if not any(find_word(word, target) for target in targets):
            positions_of(word, targets[0], role="target prompts, of which the first is")
    return PromptBatch(
        tuple(
            rewrite_prompt(
                source,
                target,
                mode=mode,
                cross_window=cross_window,
                self_window=self_window,
                weights={w: f for w, f in factors.items() if find_word(w, target)},
            )
            for target in targets
        )
    )


def _row(qkv: QKV, row: int) -> QKV:
    return QKV(*(None if t is None else t[row : row + 1] for t in qkv))


def _nothing(own: QKV) -> QKV:
    """A term that adds zero to a row."""
    return QKV(own.q, own.k, torch.zeros_like(own.v))


def _joined(terms: Sequence[QKV]) -> QKV:
    if len({term.k.shape for term in terms}) > 1:
        lengths = sorted({term.k.shape[1] for term in terms})
        raise PalimpsestError(
            f"The prompts of a batch have {' and '.join(map(str, lengths))} tokens: make them all "
            "shorter than 75 tokens, or edit them one by one."
        )
    return QKV(*(torch.cat(tensors) for tensors in zip(*terms, strict=True)))
