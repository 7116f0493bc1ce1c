"""A source's row in one call with the prompt's row of its target: neither waits for the other.

Core asks for the branches of a prediction in one call and shows all of them the same latent. Here
the prompt's branch is asked for alone, with the source's entry beside it at strength 0, so that
core leaves its row out of the prediction; on its way into the network that row is put where the
source stands. Core runs the last entries of a branch first, in one batch and in several: the source
is always seen before the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import comfy.samplers
import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ...pipelines.attention.hooks import Hooks
from .calls import Call
from .guidance import asked_by_core
from .hooked import seen

#: An entry of a conditioning, as a session holds it.
Entry = Mapping[str, Any]

#: What of an entry says that it is no plain prompt for the whole picture in all steps.
_RESTRICTING = frozenset(
    {"area", "mask", "timestep_start", "timestep_end", "control", "hooks", "gligen", "default"}
)

#: Where core hands its options to what wraps a call of the network: after t, two contexts, control.
_OPTIONS = 4


@dataclass(frozen=True, eq=False)
class Beside:
    """What runs beside the prompt's row of a target.

    Attributes:
        entry: The source's.
        place: Gives where it stands, [B, C, ...], or None where it does not run.
    """

    entry: Entry
    place: Callable[[], Tensor | None]


def can_run_beside(source: list[Entry], target: list[Entry]) -> bool:
    """Whether core would run two branches of one plain entry each in one batch."""
    if len(source) != 1 or len(target) != 1:
        return False
    entries = source[0], target[0]
    if any(entry.get(key) is not None for entry in entries for key in _RESTRICTING):
        return False
    return comfy.samplers.cond_equal_size(*(entry["model_conds"] for entry in entries))


def with_pair(
    options: dict[str, Any], x: Tensor, hooks: Hooks, source: Entry, shown: Tensor
) -> dict[str, Any]:
    """Options in which core's own call for a prediction of `x` runs a source beside its prompt.

    Args:
        options: Of the run.
        x: [B, C, ...] where the target stands.
        hooks: See the network from inside.
        source: The source's entry.
        shown: [B, C, ...] where it stands, as the network is shown it.
    """
    given = options.get("sampler_calc_cond_batch_function", asked_by_core)
    entry = {**source, "strength": 0.0, "uuid": uuid4()}

    def ask(args: dict[str, Any]) -> list[Tensor]:
        if args["input"] is not x:
            return given(args)
        prompt, *others = args["conds"]

        def asked(branches: list, known: dict[str, Any]) -> list[Tensor]:
            call = Call.of(branches, x, entry["uuid"])
            looked_at = seen(args["model"], known, hooks, call)
            return given(args | {"conds": branches, "model_options": looked_at})

        guess, *_ = asked([[*prompt, entry]], _moved(options, entry["uuid"], shown))
        if not any(others):
            return [guess, *(torch.zeros_like(guess) for _ in others)]
        return [guess, *asked([None, *others], options)[1:]]

    return options | {"sampler_calc_cond_batch_function": ask}


def _moved(options: dict[str, Any], entry: UUID, shown: Tensor) -> dict[str, Any]:
    """A copy of options in which the network is shown the rows of an entry somewhere else."""
    options = create_model_options_clone(options)

    def moved(executor: Callable[..., Tensor], x: Tensor, *args: Any, **more: Any) -> Tensor:
        ids = args[_OPTIONS]["uuids"]
        parts = zip(x.chunk(len(ids)), ids, strict=True)
        return executor(torch.cat([shown if i == entry else p for p, i in parts]), *args, **more)

    add_wrapper_with_key(WrappersMP.APPLY_MODEL, "palimpsest_beside", moved, options, True)
    return options
