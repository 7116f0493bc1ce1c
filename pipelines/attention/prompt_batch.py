"""One source, many target prompts: an attention control for every row of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import PalimpsestError
from ..schedule import Moment
from .control import Control, acts_in
from .hooks import QKV, Kind, OfSome, Role, Site, Term
from .prompt_to_prompt import SELF_PIXELS, Mode, rewrite_prompt
from .tokens import PromptTokens, find_word, require_words


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """The controls of a batch of target prompts, row by row; all read the same source.

    Attributes:
        controls: One for each row. They keep the same tensors of the same rows of the source.
    """

    controls: tuple[Control, ...]

    @property
    def acts_in(self) -> frozenset[Kind]:
        """Where all of them act."""
        return acts_in(self.controls[0])

    def source_role(self, role: Role) -> Role | None:
        """Which rows of the source the controls read."""
        return self.controls[0].source_role(role)

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether any of them reads the source at this site."""
        return any(control.reads(site, at) for control in self.controls)

    def active(self, at: Moment) -> bool:
        """Whether any of them reads the source in this step."""
        return any(control.active(at) for control in self.controls)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """What the controls read of the source."""
        return self.controls[0].kept(site, own, at)

    def terms(
        self, own: QKV, source: QKV | None, site: Site, at: Moment
    ) -> tuple[Term, ...] | None:
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
        owns = [_row(own, row) for row in range(rows)]
        answers = []
        for row, (one, control) in enumerate(zip(owns, self.controls, strict=True)):
            read = source is not None and control.reads(site, at)
            answers.append(control.terms(one, _row(source, row) if read else None, site, at))
        if not any(answers):
            return None
        if site.kind == "joint":
            return tuple(_of_each(owns, answers))
        sums = [terms or (one,) for terms, one in zip(answers, owns, strict=True)]
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
    word_windows: Mapping[str, tuple[float, float]] | None = None,
    self_pixels: int = SELF_PIXELS,
    weights_always: bool = False,
) -> PromptBatch:
    """The control that turns the picture of one prompt into those of several.

    Args:
        source: Describes the picture as it is.
        targets: Each describes it after an edit.
        mode: See `rewrite_prompt`, as for the other arguments.
        cross_window: Of all targets.
        self_window: Of all targets.
        weights: Act in the targets that have the word.
        word_windows: Likewise.
        self_pixels: Of all targets.
        weights_always: Of all targets.

    Raises:
        PalimpsestError: As `rewrite_prompt`; also if no target has a word that has a weight or a
            window.
    """
    factors, windows = weights or {}, word_windows or {}
    require_words([*factors, *windows], targets, role="target prompt")
    return PromptBatch(
        tuple(
            rewrite_prompt(
                source,
                target,
                mode=mode,
                cross_window=cross_window,
                self_window=self_window,
                weights={w: f for w, f in factors.items() if find_word(w, target)},
                word_windows={w: b for w, b in windows.items() if find_word(w, target)},
                self_pixels=self_pixels,
                weights_always=weights_always,
            )
            for target in targets
        )
    )


def _of_each(owns: Sequence[QKV], answers: Sequence[tuple[Term, ...] | None]) -> Iterator[OfSome]:
    """The terms of every row for itself; each takes other queries, or none in particular."""
    for row, (one, terms) in enumerate(zip(owns, answers, strict=True)):
        for term in terms or (one,):
            if isinstance(term, QKV):
                term = OfSome(term, slice(None), torch.arange(one.q.shape[1]))
            yield term._replace(rows=slice(row, row + 1))


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
