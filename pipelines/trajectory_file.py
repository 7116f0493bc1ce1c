"""What a trajectory file holds: named tensors and a little text, in numbered formats."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields

import torch
from torch import Tensor

from .errors import PalimpsestError
from .proximal import Proximal
from .trajectory import CARRIED, Recipe, Trajectory

#: Newest format of a stored trajectory; older ones stay readable for ever. A file is written in the
#: oldest format that can hold it, so that an older version reads what it understands.
#:     1  a chain, and its denoised guesses
#:     2  what an inversion adds: unconditional embeddings, value maps, a coupled chain, an image
#:        apart from the chain; limits to the guidance of its edits
FORMAT = 2


def to_tensors(trajectory: Trajectory) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the text of a trajectory file; a host writes them."""
    tensors = {
        "latents": trajectory.latents.contiguous(),
        "sigmas": trajectory.sigmas.contiguous(),
        "origin": trajectory.origin.contiguous(),
    }
    tensors |= {name: tensor.contiguous() for name, tensor in trajectory.carried.items()}
    needed = max((CARRIED[name] for name in trajectory.carried), default=1)
    if trajectory.recipe.proximal is not None:
        needed = max(needed, 2)
    about = {"palimpsest_trajectory": str(needed), "recipe": json.dumps(asdict(trajectory.recipe))}
    return tensors, about


def from_tensors(
    tensors: Mapping[str, Tensor], about: Mapping[str, str], *, name: str
) -> Trajectory:
    """Read back what `to_tensors` gave.

    Args:
        tensors: The file's tensors.
        about: The file's text.
        name: What the file is called, for messages.

    Raises:
        PalimpsestError: If it is no trajectory, of a newer format, or damaged.
    """
    version = about.get("palimpsest_trajectory")
    if version is None:
        raise PalimpsestError(
            f"{name} is not a trajectory: choose a file written by Save Trajectory."
        )
    if not version.isdecimal() or not 1 <= int(version) <= FORMAT:
        raise PalimpsestError(
            f"{name} is of trajectory format {version}, this version reads 1 to {FORMAT}: "
            "update ComfyUI-Palimpsest."
        )
    missing = {"latents", "sigmas", "origin"} - tensors.keys()
    if missing:
        raise PalimpsestError(
            f"{name} is damaged: it lacks {', '.join(sorted(missing))}. Save the trajectory again."
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise PalimpsestError(f"{name} is damaged: it holds NaN. Save the trajectory again.")
    recipe = _recipe(about, name)
    try:
        return Trajectory(
            tensors["latents"],
            tensors["sigmas"],
            tensors["origin"],
            recipe,
            **{key: tensor for key, tensor in tensors.items() if key in CARRIED},
        )
    except PalimpsestError as error:
        raise PalimpsestError(f"{name} is damaged. {error} Save the trajectory again.") from error


def _recipe(about: Mapping[str, str], name: str) -> Recipe:
    """The recipe of a file; fields that a later version added are left out."""
    try:
        stored = json.loads(about["recipe"])
        built = {key: tuple(v) for key, v in stored.items() if isinstance(v, list)}
        if stored.get("proximal") is not None:
            built["proximal"] = Proximal(**_known(Proximal, stored["proximal"]))
        return Recipe(**_known(Recipe, stored | built))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PalimpsestError(
            f"{name} is damaged: its recipe cannot be read. Save the trajectory again."
        ) from error


def _known(kind: type, stored: Mapping[str, object]) -> dict[str, object]:
    """Of what a file says, that which a dataclass has fields for."""
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in stored.items() if key in names}
