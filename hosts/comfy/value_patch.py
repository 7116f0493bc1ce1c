"""Mapped values of cross-attention in ComfyUI's UNet, through its own patch point."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

from ...pipelines.attention.value_mapping import ValuesAt, value_contexts
from .calls import Prompts
from .coordinates import Coordinates
from .guests import without_compiled
from .session import Session


def with_values(session: Session, values_at: ValuesAt) -> Session:
    """A session whose conditional rows compute cross-attention's values from a mapped embedding.

    What other nodes put there before stays, and is mapped as well.

    Args:
        session: The session.
        values_at: The mapping of a level; None leaves the values of that level alone.
    """
    options = comfy.model_patcher.create_model_options_clone(session.options)
    without_compiled(options)
    patches = options.setdefault("transformer_options", {}).setdefault("patches", {})
    positives = [*session.source["positive"], *session.target["positive"]]
    negatives = [*session.source["negative"], *session.target["negative"]]
    mapped = _patch(values_at, session.coordinates, Prompts.of([positives, negatives]))
    patches["attn2_patch"] = [*patches.get("attn2_patch", []), mapped]
    return replace(session, options=options)


def _patch(
    values_at: ValuesAt, coordinates: Coordinates, prompts: Prompts
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """What core calls with the queries' input, and those of keys and values.

    The mapping belongs to the prompts, in whose call ever their rows are: guidance that asks for
    the conditional rows once more is shown what it compares with.
    """

    def patch(
        n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = values_at(coordinates.sigma(extra["sigmas"][0].double()))
        roles = prompts.roles(extra)
        if values is None or "cond" not in roles:
            return n, context, value
        length = prompts.length(extra)
        mapped = value_contexts(value[:, :length], roles, values)
        return n, context, torch.cat([mapped, value[:, length:]], dim=1)

    return patch
