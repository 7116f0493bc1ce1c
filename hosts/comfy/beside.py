"""A source's rows in one call with those of its target: none waits for the others.

Core asks for the branches of a prediction in one call and shows all of them the same latent. Here
every branch is asked for alone, with the source's entry beside it at strength 0, so that core
leaves its row out of the prediction; on its way into the network that row is put where the source
stands. Core runs the last entries of a branch first, in one batch and in several: the source
is always seen before the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import comfy.samplers
import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ...pipelines.attention.hooks import ROLES, Hooks, Role
from ...pipelines.lending import PlaceOf
from .calls import Call
from .guidance import Conds, CondsAt, asked_by_core
from .hooked import seen

#: An entry of a conditioning, as a session holds it.
Entry = Mapping[str, Any]

#: What of an entry says that it is no plain prompt for the whole picture in all steps.
_RESTRICTING = frozenset(
    {"area", "mask", "timestep_start", "timestep_end", "control", "hooks", "gligen", "default"}
)

#: Names of the branches in a session's conditionings.
_BRANCH: dict[Role, str] = {"cond": "positive", "uncond": "negative"}

#: Where core hands its options to what wraps a call of the network: after t, two contexts, control.
_OPTIONS = 4


@dataclass(frozen=True, eq=False)
class RowsBeside:
    """Rows of a source that run in one call with those of a target that read them.

    Attributes:
        conds: The source's, or what gives them for a level.
        place: See `lending.Beside`.
    """

    conds: Conds | CondsAt
    place: PlaceOf

    def at(self, sigma: Tensor) -> dict[int, tuple[Entry, Tensor]]:
        """Entry and place of each that runs at a level, by core's index of the branch."""
        conds = self.conds(sigma) if callable(self.conds) else self.conds
        waiting = {index: self.place(role) for index, role in enumerate(ROLES)}
        return {
            index: (conds[_BRANCH[found[0]]][0], found[1])
            for index, found in waiting.items()
            if found is not None
        }


def can_run_beside(source: Conds, target: Conds, rows: Mapping[Role, Role]) -> bool:
    """Whether core would run each row of a source in one batch with those that read it.

    Args:
        source: Its conditionings.
        target: Those of the target.
        rows: See `lending.Lender.pairs`.
    """
    return all(_alike(source[_BRANCH[row]], target[_BRANCH[own]]) for own, row in rows.items())


def _alike(source: Sequence[Entry], target: Sequence[Entry]) -> bool:
    if len(source) != 1 or len(target) != 1:
        return False
    entries = source[0], target[0]
    if any(entry.get(key) is not None for entry in entries for key in _RESTRICTING):
        return False
    return comfy.samplers.cond_equal_size(*(entry["model_conds"] for entry in entries))


def with_rows_beside(
    options: dict[str, Any], x: Tensor, hooks: Hooks, beside: Mapping[int, tuple[Entry, Tensor]]
) -> dict[str, Any]:
    """Options in which core's own call for a prediction of `x` is one for every branch.

    Args:
        options: Of the run.
        x: [B, C, ...] where the target stands, as the network is shown it.
        hooks: See the network from inside.
        beside: Entry of a source and where it stands, alike, by index of the branch.
    """
    given = options.get("sampler_calc_cond_batch_function", asked_by_core)

    def of_branch(args: dict[str, Any], index: int, entries: Sequence[Entry] | None) -> Tensor:
        if not entries:
            return torch.zeros_like(x)
        known, name, every = options, None, [*entries]
        if index in beside:
            entry, place = beside[index]
            name = uuid4()
            known = _moved(options, name, place)
            every.append({**entry, "strength": 0.0, "uuid": name})
        branches = [*[None] * index, every]
        looked_at = seen(args["model"], known, hooks, Call.of(branches, x, name))
        return given(args | {"conds": branches, "model_options": looked_at})[index]

    def ask(args: dict[str, Any]) -> list[Tensor]:
        if args["input"] is not x:
            return given(args)
        return [of_branch(args, *branch) for branch in enumerate(args["conds"])]

    return options | {"sampler_calc_cond_batch_function": ask}


def _moved(options: dict[str, Any], name: UUID, place: Tensor) -> dict[str, Any]:
    """A copy of options in which the network is shown the rows of an entry somewhere else."""
    options = create_model_options_clone(options)

    def moved(executor: Callable[..., Tensor], x: Tensor, *args: Any, **more: Any) -> Tensor:
        names = args[_OPTIONS]["uuids"]
        parts = zip(x.chunk(len(names)), names, strict=True)
        shown = torch.cat([place if one == name else part for part, one in parts])
        return executor(shown, *args, **more)

    add_wrapper_with_key(WrappersMP.APPLY_MODEL, "palimpsest_beside", moved, options, True)
    return options
