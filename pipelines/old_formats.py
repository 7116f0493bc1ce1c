"""How trajectory files of the formats 1 and 2 said what format 3 calls carried.

They are read for ever and never written again: what stands here does not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .carried import Carried
from .inversion.edict import Coupled
from .inversion.mapped_values import MappedValues
from .inversion.negative_embedding import NegativeEmbedding
from .proximal import Proximal


def carried_before_3(
    tensors: Mapping[str, Tensor], recipe: Mapping[str, Any]
) -> list[tuple[type[Carried], dict[str, Any]]]:
    """What a file carries, and the fields of each.

    Args:
        tensors: All tensors of the file; each part had a name of its own.
        recipe: Its recipe, which held the settings of every part.
    """
    learned_at = recipe.get("cfg") if recipe.get("cfg_bound") else None
    found: list[tuple[type[Carried], dict[str, Any]]] = []
    if "uncond" in tensors:
        own = {"embedding": tensors["uncond"], "rows": recipe.get("uncond_for", "both")}
        found.append((NegativeEmbedding, own | {"cfg": learned_at}))
    if "values" in tensors:
        own = {"values": tensors["values"], "cfg": recipe.get("cfg", 1.0)}
        found.append((MappedValues, own | {"window": recipe.get("value_window", 1.0)}))
    if "partner" in tensors or "guesses" in tensors:
        own = {key: tensors[key] for key in ("partner", "guesses") if key in tensors}
        settings = {key: recipe[key] for key in ("mixing", "rests") if key in recipe}
        found.append((Coupled, own | settings))
    if recipe.get("proximal") is not None:
        found.append((Proximal, recipe["proximal"]))
    return found
