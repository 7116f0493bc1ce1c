"""What a trajectory file holds: named tensors and a little text, in numbered formats."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from .carried import Carried
from .errors import PalimpsestError
from .inversion.edict import Coupled
from .inversion.fresh_noise import FreshNoise
from .inversion.mapped_values import MappedValues
from .inversion.negative_embedding import NegativeEmbedding
from .inversion.uni_inv import Aligned
from .old_formats import carried_before_3
from .proximal import Proximal
from .trajectory import Recipe, Trajectory

#: Newest format of a stored trajectory; older ones stay readable for ever. A file is written in the
#: oldest format that can hold it, so that an older version reads what it understands.
#:     1  a chain, and its denoised guesses
#:     2  what inversions of that time added, by name (`old_formats`); no longer written
#:     3  whatever a method carries; an image apart from the chain; a strength of its own
FORMAT = 3

#: What a file may carry besides the chain. A method that carries something adds its class.
KINDS: tuple[type[Carried], ...] = (
    Aligned,
    Coupled,
    FreshNoise,
    MappedValues,
    NegativeEmbedding,
    Proximal,
)

#: What a file calls a field of `Recipe`, where the field has another name by now.
IN_FILE = {"source_key": "source"}

#: Every number of a recipe is smaller than this.
NUMBERS = 2**63

#: The tensors of every trajectory, and those of some.
ALWAYS, SOMETIMES = ("latents", "sigmas", "origin"), ("denoised", "image")


def to_tensors(trajectory: Trajectory) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the text of a trajectory file; a host writes them."""
    every = {name: getattr(trajectory, name) for name in (*ALWAYS, *SOMETIMES)}
    for carried in trajectory.carried:
        every |= {f"{carried.name}/{key}": t for key, t in carried.tensors.items()}
    recipe = {IN_FILE.get(key, key): v for key, v in asdict(trajectory.recipe).items()}
    about = {"palimpsest_trajectory": str(_oldest_format(trajectory))}
    if about["palimpsest_trajectory"] == "1":
        del recipe["strength"]
    else:
        settings = {carried.name: carried.settings for carried in trajectory.carried}
        about["carried"] = json.dumps(settings)
    about["recipe"] = json.dumps(recipe)
    return {name: t.contiguous() for name, t in every.items() if t is not None}, about


def _oldest_format(trajectory: Trajectory) -> int:
    """The oldest format that can hold a trajectory."""
    recipe = trajectory.recipe
    bound = recipe.strength == _strength_before_3(recipe.eta)
    return 1 if bound and not trajectory.carried and trajectory.image is None else 3


def _strength_before_3(eta: float) -> float | None:
    """What older formats say of the strength: an SDE chain's noise is repeated, and that is all."""
    return 1.0 if eta else None


def from_tensors(
    tensors: Mapping[str, Tensor], about: Mapping[str, str], *, name: str
) -> Trajectory:
    """Read back what `to_tensors` gave, in this version or any before it.

    Args:
        tensors: The file's tensors.
        about: The file's text.
        name: What the file is called, for messages.

    Raises:
        PalimpsestError: If it is no trajectory, of a newer format, or damaged.
    """
    version = read_format(about, name)
    missing = set(ALWAYS) - tensors.keys()
    if missing:
        raise PalimpsestError(
            f"{name} is damaged: it lacks {', '.join(sorted(missing))}. Save the trajectory again."
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise PalimpsestError(f"{name} is damaged: it holds NaN. Save the trajectory again.")
    stored = _text(about, "recipe", name)
    renamed = {field: stored[key] for field, key in IN_FILE.items() if key in stored}
    recipe = _built(Recipe, stored | renamed, name)
    if version < 3:
        recipe = replace(recipe, strength=_strength_before_3(recipe.eta))
        carried = carried_before_3(tensors, stored)
    else:
        carried = _carried(tensors, _text(about, "carried", name), name)
    some = {key: tensors.get(key) for key in SOMETIMES}
    try:
        values = tuple(_built(kind, _object(own, name), name) for kind, own in carried)
        return Trajectory(*(tensors[key] for key in ALWAYS), recipe, **some, carried=values)
    except PalimpsestError as error:
        if str(error).startswith(name):
            raise
        raise PalimpsestError(f"{name} is damaged. {error} Save the trajectory again.") from error


def read_format(about: Mapping[str, str], name: str) -> int:
    """The format of a file, by its text alone: a host may ask before it reads the tensors.

    Raises:
        PalimpsestError: If it is no trajectory, or of a newer format.
    """
    version = about.get("palimpsest_trajectory")
    if version is None:
        raise PalimpsestError(
            f"{name} is not a trajectory: choose a file written by Save Trajectory."
        )
    known = [str(number) for number in range(1, FORMAT + 1)]
    if version not in known:
        raise PalimpsestError(
            f"{name} is of trajectory format {version[:80]}, this version reads 1 to {FORMAT}: "
            "update ComfyUI-Palimpsest."
        )
    return int(version)


def _carried(
    tensors: Mapping[str, Tensor], settings: dict[str, Any], name: str
) -> list[tuple[type[Carried], dict[str, Any]]]:
    """What a file carries, and the fields of each."""
    kinds = {kind.name: kind for kind in KINDS}
    found = []
    for key, own in settings.items():
        if key not in kinds:
            raise PalimpsestError(
                f"{name} carries a {key[:80]}, which this version does not know: update "
                "ComfyUI-Palimpsest."
            )
        prefix = f"{key}/"
        mine = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        found.append((kinds[key], _object(own, name) | mine))
    return found


def _text(about: Mapping[str, str], key: str, name: str) -> dict[str, Any]:
    """A JSON object among the text of a file."""
    try:
        return _object(json.loads(about[key]), name)
    except (KeyError, ValueError, RecursionError) as error:
        raise _unreadable(name) from error


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unreadable(name)
    return value


def _built(kind: type, stored: Mapping[str, Any], name: str) -> Any:
    """A dataclass from what a file says of its fields; those of a later version are left out.

    Raises:
        PalimpsestError: If a field is of another type or not finite, or one is missing.
    """
    hints, built = get_type_hints(kind), {}
    for field in fields(kind):
        if field.name not in stored:
            continue
        value = stored[field.name]
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[field.name]):
            raise _unreadable(name, f": {field.name} is {str(value)[:80]!r}")
        built[field.name] = value
    try:
        return kind(**built)
    except TypeError as error:  # a field that has no default
        raise _unreadable(name) from error


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is what a field says: a number is finite, a choice one of its words."""
    choices = get_args(hint) or (hint,)  # of a union or a Literal
    if isinstance(value, tuple):
        return choices[-1] is ... and all(_fits(v, float) for v in value)
    if isinstance(value, bool):
        return bool in choices
    if isinstance(value, int | float):
        named = float in choices or (int in choices and isinstance(value, int))
        return named and -NUMBERS < value < NUMBERS  # false for NaN
    words = [word for word in choices if isinstance(word, str)]
    if isinstance(value, str) and words:
        return value in words
    return any(isinstance(kind, type) and isinstance(value, kind) for kind in choices)


def _unreadable(name: str, why: str = "") -> PalimpsestError:
    return PalimpsestError(
        f"{name} is damaged: its recipe cannot be read{why}. Save the trajectory again."
    )
