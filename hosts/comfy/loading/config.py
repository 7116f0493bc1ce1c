"""The JSON files of a model folder: every field that is read has a type and a range.

Whatever the file says reaches a constructor of core's only after it was checked here: a wrong type
would be an error of core's own, and a wrong number hours of building.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....pipelines.errors import PalimpsestError, quoted
from ..files.json_text import read_json_text

#: Bytes of the largest file that is read: the index of a model's shards is the largest of them.
LARGEST = 16 * 2**20

#: Characters of the longest text, and entries of the longest list.
LONGEST, MOST = 80, 16


@dataclass(frozen=True)
class Field:
    """What a field may hold.

    Attributes:
        said: What it may hold, to follow "it must be".
        holds: Whether it may hold a value.
        default: What stands for it where it is null or absent; None where it may be.
        absent: What stands for it where it is absent and null has a meaning of its own.
    """

    said: str
    holds: Callable[[object], bool]
    default: Any = None
    absent: Any = None


def whole(low: int, high: int, default: int | None = None, *, step: int = 1) -> Field:
    """A whole number from `low` to `high`, a multiple of `step`."""
    said = f"a whole number of {low} to {high}" + (f" that {step} divides" if step > 1 else "")
    return Field(said, lambda v: type(v) is int and low <= v <= high and v % step == 0, default)


def number(low: float, high: float, default: float | None = None) -> Field:
    """A finite number from `low` to `high`."""
    return Field(
        f"a number of {low:g} to {high:g}",
        lambda v: type(v) in (int, float) and low <= v <= high and math.isfinite(v),
        default,
    )


def flag() -> Field:
    """True or false; false where it is absent."""
    return Field("true or false", lambda v: type(v) is bool, False)


def words(default: str | None = None) -> Field:
    """A text."""
    return Field("a text", lambda v: isinstance(v, str) and len(v) <= LONGEST, default)


def listed(entry: Field, default: list | None = None, *, least: int = 1, most: int = MOST) -> Field:
    """A list of some, each as `entry`."""
    return Field(
        f"a list of {least} to {most}, each {entry.said}",
        lambda v: isinstance(v, list) and least <= len(v) <= most and all(map(entry.holds, v)),
        default,
    )


def either(one: Field, other: Field, default: Any = None) -> Field:
    """What one of two fields may hold."""
    said = f"{one.said}, or {other.said}"
    return Field(said, lambda v: one.holds(v) or other.holds(v), default)


def each_level(entry: Field, default: Any = None) -> Field:
    """One for all levels of a network, or a list of one a level."""
    return either(entry, listed(entry), default)


def read_config(path: Path, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Read a config: its fields as they must be, all others as they stand there.

    Args:
        path: The file.
        fields: Those that are read of it.

    Raises:
        PalimpsestError: If the file is missing or damaged, or a field holds what it must not.
    """
    config = read_json(path)
    for key, field in fields.items():
        value = config.get(key, field.absent)
        if value is not None and not field.holds(value):
            raise wrong_field(path, key, value, field.said)
        config[key] = field.default if value is None else value
    return config


def wrong_field(path: Path, key: str, value: object, said: str) -> PalimpsestError:
    """The sentence for a field that holds what it must not.

    Args:
        path: The file.
        key: The field.
        value: What it holds.
        said: What it must be.
    """
    return PalimpsestError(
        f"The file {path} has {quoted(key)[1:-1]} = {quoted(value)}: it must be {said}; download "
        "it again or choose another model."
    )


def check_levels(path: Path, config: Mapping[str, Any], keys: Iterable[str], levels: int) -> None:
    """Refuse lists of one entry a level that have another length.

    Raises:
        PalimpsestError: Naming the first of them.
    """
    for key in keys:
        value = config[key]
        if isinstance(value, list) and len(value) != levels:
            raise wrong_field(path, key, value, f"a list of {levels}, one for each level")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        PalimpsestError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise PalimpsestError(
            f"The model folder has no {path.name} in {path.parent}: it must be a whole diffusers "
            "pipeline as save_pretrained writes it; download the missing file or choose another "
            "folder."
        )
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        data = read_json_text(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PalimpsestError(
            f"The file {path} is damaged ({reason}): it must be JSON; download it again."
        ) from error
    if not isinstance(data, dict):
        raise PalimpsestError(f"The file {path} must hold a JSON object; download it again.")
    return data


def require(part: str, config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuse a configuration that ComfyUI's module would silently compute otherwise.

    Args:
        part: The subfolder, for the message.
        config: Its config.json.
        fixed: The only value of each key that ComfyUI's module knows; absent and null are fine.
    """
    for key, value in fixed.items():
        if config.get(key) not in (None, value):
            raise PalimpsestError(
                f"The {part} of this folder has {key} = {quoted(config[key])}, ComfyUI's own "
                f"computes {value!r} only: choose a model without this variation."
            )
