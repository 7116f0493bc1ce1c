"""The small transformers of the flow cases, in both hosts: each lends a case its two denoisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...dev import use_comfy
from ...hosts.diffusers.transformer import Words, load_transformer
from ...pipelines.attention.hooks import NO_HOOKS, Hooks
from ...pipelines.denoiser import Denoiser, RowCount
from ...pipelines.lending import Whose


@dataclass(frozen=True, eq=False)
class Pair:
    """The denoisers of a case's two prompts.

    Attributes:
        seen: Gives that of "source" or "target" with hooks in it.
    """

    seen: Callable[[Whose, Hooks], Denoiser]

    @property
    def source(self) -> Denoiser:
        """Of the picture."""
        return self.seen("source", NO_HOOKS)

    @property
    def target(self) -> Denoiser:
        """Of the edit."""
        return self.seen("target", NO_HOOKS)


#: What a case does with them.
Algorithm = Callable[[Pair], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Branch:
    """A prompt, and how it is guided.

    Attributes:
        words: The prompt.
        negative: The other end of the guidance, None where there is none.
        cfg: Guidance scale.
    """

    words: Words
    negative: Words | None = None
    cfg: float = 1.0


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a host needs to run a case.

    Attributes:
        part: The folder of the transformer.
        x0: [1, C, h, w] the picture, in model scale.
        levels: [N+1] falling times, for hosts that want to know where they will be asked.
        source: Of the picture.
        target: Of the edit; the source's where there is none.
    """

    part: Path
    x0: Tensor
    levels: Tensor
    source: Branch
    target: Branch


def headless(lesson: Lesson, algorithm: Algorithm) -> tuple[dict[str, Tensor], int]:
    """Run a case on diffusers' transformer; what it gives, and the rows."""
    model, rows = load_transformer(lesson.part), RowCount()

    def seen(whose: Whose, hooks: Hooks) -> Denoiser:
        branch = lesson.source if whose == "source" else lesson.target
        return model.denoiser(branch.words, branch.negative, cfg=branch.cfg, rows=rows, hooks=hooks)

    return algorithm(Pair(seen)), rows.rows


def in_comfyui(lesson: Lesson, algorithm: Algorithm) -> tuple[dict[str, Tensor], int]:
    """Run a case in a session of ComfyUI, on its own network; what it gives, and the rows."""
    use_comfy()

    from ...hosts.comfy.coordinates import coordinates_of
    from ...hosts.comfy.guidance import BranchGuider
    from ...hosts.comfy.loading.transformer import load_bare_transformer
    from ...hosts.comfy.session import run
    from ...pipelines.denoiser import constant

    with torch.inference_mode():
        model = load_bare_transformer(lesson.part)
        guider = BranchGuider(model)
        source, target = lesson.source, lesson.target
        guider.set_conds(*_conditionings(target))
        guider.set_source(*_conditionings(source))
        guider.set_cfg(target.cfg)

        def inside(session: Any) -> dict[str, Tensor]:
            def seen(whose: Whose, hooks: Hooks) -> Denoiser:
                conds = session.source if whose == "source" else session.target
                cfg = source.cfg if whose == "source" else target.cfg
                return session.denoiser(conds, hooks, guidance=constant(cfg))

            return algorithm(Pair(seen))

        coordinates = coordinates_of(model, "parity")
        found, spent = run(guider, lesson.x0, lesson.levels, inside, coordinates=coordinates)
    return found, spent.rows


def _conditionings(branch: Branch) -> tuple[list, list]:
    """A branch as ComfyUI's CONDITIONING, and its negative."""
    positive, negative = (_conditioning(w) for w in (branch.words, branch.negative or branch.words))
    return positive, negative


def _conditioning(words: Words) -> list:
    told = {} if words.guidance is None else {"guidance": words.guidance}
    return [[words.states, {"pooled_output": words.pooled, **told}]]


#: Who runs the cases.
HOSTS = {"headless": headless, "ComfyUI": in_comfyui}
