"""What may come into our nodes, by the type of the input: one declared range, held everywhere.

A widget's minimum, maximum and options are what core checks of numbers that are typed in. It lets
NaN through, and asks nothing of what comes by wire; here both are held to the same declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral, Real
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..hosts.comfy.edits.bound import BoundControl
from ..hosts.comfy.edits.compare import Compared
from ..pipelines.errors import PalimpsestError, quoted
from ..pipelines.points import DragPoints
from ..pipelines.trajectory import Trajectory as Chain
from .wires import Comparison, Control, Points, Trajectory

#: Characters at most of any text.
LONGEST_TEXT = 100_000
#: What latents, pictures and conditionings are computed in.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MASKS = (*FLOATS, torch.bool, torch.uint8)

WIDGET = "set it in the node, or mend what is wired to it"


@dataclass(frozen=True)
class Wire:
    """What a wire of one type brings.

    Attributes:
        what: It in words, after "must be".
        fits: Whether a value is such a thing.
        broken: What most likely made it hold NaN or infinity, and what to do.
    """

    what: str
    fits: Callable[[Any], bool]
    broken: str = "an earlier node failed; run that one again"


def check(wanted: io.Input, value: Any, *, listed: bool = True) -> None:
    """Refuse what an input does not take.

    Args:
        wanted: The input.
        value: What came in.
        listed: Whether a choice must be one of the options.

    Raises:
        PalimpsestError: Naming the input, what it was and what it must be.
    """
    if value is None and wanted.optional and getattr(wanted, "default", None) is None:
        return
    if isinstance(wanted, io.Int.Input | io.Float.Input):
        _check_number(wanted, value)
    elif isinstance(wanted, io.Combo.Input):
        _check_choice(wanted, value, listed)
    elif isinstance(wanted, io.Boolean.Input):
        _refuse(isinstance(value, bool), shown(wanted), value, f"true or false: {WIDGET}")
    elif isinstance(wanted, io.String.Input):
        _check_text(wanted, value)
    else:
        _check_wire(wanted, value)


def shown(wanted: io.Input) -> str:
    """What a node calls an input."""
    return wanted.display_name or wanted.id


def _check_number(wanted: io.Input, value: Any) -> None:
    whole = isinstance(wanted, io.Int.Input)
    kind = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    span = f"from {_told(wanted.min)} to {_told(wanted.max)}"
    must = f"a {'whole number' if whole else 'number'} {span}: {WIDGET}"
    _refuse(kind and bool(wanted.min <= value <= wanted.max), shown(wanted), value, must)


def _told(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _check_choice(wanted: io.Combo.Input, value: Any, listed: bool) -> None:
    fits = isinstance(value, str) and (not listed or value in wanted.options)
    few = ", ".join(wanted.options) if listed and len(wanted.options) <= 6 else "in its list"
    _refuse(fits, shown(wanted), value, f"one of those {few}: choose it in the node")


def _check_text(wanted: io.String.Input, value: Any) -> None:
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise PalimpsestError(
            f"{shown(wanted)} is a text of {len(value)} characters, it may have {LONGEST_TEXT}: "
            "shorten it."
        )
    _refuse(isinstance(value, str), shown(wanted), value, f"text: {WIDGET}")


def _check_wire(wanted: io.Input, value: Any) -> None:
    wire, name = WIRES[wanted.get_io_type()], f"The {shown(wanted)}"
    _refuse(wire.fits(value), name, value, f"{wire.what}: connect such a one")
    if not all_finite(value):
        holds = "hold" if _many(name) else "holds"
        raise PalimpsestError(f"{name} {holds} NaN or infinity: {wire.broken}.")


def _refuse(fits: bool, name: str, value: Any, must: str) -> None:
    if not fits:
        are, they = ("are", "they") if _many(name) else ("is", "it")
        raise PalimpsestError(f"{name} {are} {described(value)}, {they} must be {must}.")


def _many(name: str) -> bool:
    """Whether a wire is called by a plural: The sigmas, The points."""
    return name.startswith("The ") and name.endswith("s")


def described(value: Any) -> str:
    """A value of any type, for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, str | Real):
        return quoted(value)
    if isinstance(value, Tensor):
        shape = quoted(tuple(value.shape))
        if not value.numel():
            return f"empty, of shape {shape}"
        return f"of shape {shape} and type {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict) and "samples" in value:
        return described(value["samples"])
    return f"a {type(value).__name__}"


def all_finite(value: Any) -> bool:
    """Whether no number in a value, however it is packed, is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(value))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value that is made of containers and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def _shaped(value: Any, ranks: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOATS) -> bool:
    """Whether a value is a tensor of such a rank and type that holds anything."""
    return (
        isinstance(value, Tensor)
        and value.ndim in ranks
        and value.dtype in dtypes
        and value.numel() > 0
    )


def _is_latent(value: Any) -> bool:
    return isinstance(value, dict) and _shaped(value.get("samples"), (3, 4, 5))


def _is_mask(value: Any) -> bool:
    flat = isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] != 1
    return _shaped(value, (2, 3, 4), MASKS) and not flat


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_entry, value))


def _is_entry(entry: Any) -> bool:
    pair = isinstance(entry, list | tuple) and len(entry) == 2
    return pair and _shaped(entry[0], (2, 3, 4)) and isinstance(entry[1], dict)


def _is_comparison(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(row, Compared) for row in value)


def _has(*methods: str) -> Callable[[Any], bool]:
    """Whether a value can do what core's own object of the type can; other packs bring theirs."""
    return lambda value: all(callable(getattr(value, name, None)) for name in methods)


def _is_a(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


_PRECISION = "or run the model in bfloat16 or float32"

WIRES: dict[str, Wire] = {
    io.Model.io_type: Wire("a MODEL", _is_a(ModelPatcher)),
    io.Clip.io_type: Wire("a CLIP", _has("tokenize", "encode_from_tokens_scheduled")),
    io.Vae.io_type: Wire("a VAE", _has("encode", "decode")),
    io.ClipVision.io_type: Wire("a CLIP_VISION", _has("encode_image")),
    io.Noise.io_type: Wire("a NOISE", _has("generate_noise")),
    io.Conditioning.io_type: Wire(
        "a CONDITIONING of at least one prompt",
        _is_conditioning,
        "a weight in its prompt is too large, such as (word:inf), or the text encoder overflowed; "
        "mend the prompt, or run CLIP in float32",
    ),
    io.Latent.io_type: Wire(
        "a LATENT [batch, channels, height, width] of at least one picture",
        _is_latent,
        "the VAE overflowed or an earlier node failed; encode the picture again, with the VAE in "
        "float32 or bfloat16",
    ),
    io.Image.io_type: Wire(
        "an IMAGE [batch, height, width, colours] of at least one picture",
        lambda value: _shaped(value, (4,)),
        f"what painted or decoded it overflowed; paint it again at a lower cfg, {_PRECISION}",
    ),
    io.Mask.io_type: Wire(
        "a MASK [batch, height, width] of at least one picture",
        _is_mask,
        "the node that made it divided by zero or overflowed; mend that one",
    ),
    io.Sigmas.io_type: Wire(
        "SIGMAS, a row of at least one noise level",
        lambda value: _shaped(value, (1,)),
        "a schedule of a flow model was divided by zero, or has an infinite start; take the "
        "sigmas of a scheduler node or of Invert",
    ),
    Trajectory.io_type: Wire(
        "a trajectory from an Invert node", _is_a(Chain), f"invert the picture again, {_PRECISION}"
    ),
    Control.io_type: Wire(
        "a control from Prompt-to-Prompt, MasaCtrl, Plug-and-Play or pix2pix-zero",
        _is_a(BoundControl),
        "a weight in its prompts is no number or too large, such as (word:inf); mend the prompt",
    ),
    Points.io_type: Wire("points from Drag Points", _is_a(DragPoints)),
    Comparison.io_type: Wire("a comparison from Comparison Sheet", _is_comparison),
}
