"""Methods compared on one picture: what came back, what was edited, and what it cost."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, replace

import torch
from comfy.sd import VAE
from torch import Tensor
from torch.nn.functional import interpolate

from ....pipelines.errors import PalimpsestError
from ...drawing.sheet import Sheet, draw_sheet
from ..latents import decode_pictures
from ..masks import mask_pictures

#: Pixels at most of a side of a picture on the sheet; numbers are of the whole picture.
SHOWN = 512
#: Letters at most of a line of a label.
LETTERS = 28


@dataclass(frozen=True, eq=False)
class Compared:
    """One method's row.

    Attributes:
        label: What it is called.
        cost: What it cost, in words; "" where that is not known.
        source: [H, W, 3] the picture, in 0..1.
        reconstruction: [H, W, 3] what the edit made of the source, or None if it was not followed.
        edit: [H, W, 3] the edit.
        psnr_vae: In dB to the source: of the source itself, encoded and decoded.
        psnr_reconstruction: Of the reconstruction, or None.
        psnr_edit: Of the edit, outside the mask if there is one.
        masked: Whether there is one.
    """

    label: str
    cost: str
    source: Tensor
    reconstruction: Tensor | None
    edit: Tensor
    psnr_vae: float
    psnr_reconstruction: float | None
    psnr_edit: float
    masked: bool

    @property
    def lines(self) -> list[str]:
        """What the sheet says of it; a tab stands before a number."""
        told = textwrap.wrap(self.label, LETTERS)[:2] or ["(no label)"]
        for part in self.cost.replace(" (", "\n").replace(")", "").splitlines():
            told += textwrap.wrap(part, LETTERS)
        if self.psnr_reconstruction is not None:
            told.append(f"reconstruction\t{decibels(self.psnr_reconstruction)}")
        told.append(f"edit, outside the mask\t{decibels(self.psnr_edit)}")
        if not self.masked:
            told[-1] = f"edit\t{decibels(self.psnr_edit)}"
        return told

    def shown(self) -> Compared:
        """The same with its pictures as large as the sheet shows them."""
        pictures = {
            name: None if picture is None else _no_larger(picture)
            for name in ("source", "reconstruction", "edit")
            for picture in (getattr(self, name),)
        }
        return replace(self, **pictures)


#: What goes over the wire: the rows so far.
Comparison = tuple[Compared, ...]


@dataclass(frozen=True, eq=False)
class CompareRequest:
    """One row, as it comes from the wires.

    Attributes:
        vae: The model's own.
        source: [1, H, W, 3] the picture, in 0..1.
        reconstruction: [1, C, h, w] LATENT samples, or None if it was not followed.
        edit: [1, C, h, w] LATENT samples.
        label: What the method is called.
        cost: What it cost, in words.
        mask: [1, H, W], white where the picture may change; or None.
    """

    vae: VAE
    source: Tensor
    reconstruction: Tensor | None
    edit: Tensor
    label: str
    cost: str = ""
    mask: Tensor | None = None


def compare(request: CompareRequest, before: Comparison = ()) -> Comparison:
    """Append a row.

    Raises:
        PalimpsestError: In one sentence, if anything is a batch or not of the source's size.
    """
    source, outside = _picture(request.source, "source"), _outside(request)
    edit = _decoded(request, request.edit, "edit")
    back = None
    if request.reconstruction is not None:
        back = _decoded(request, request.reconstruction, "reconstruction")
    row = Compared(
        request.label.strip(),
        request.cost.strip(),
        source,
        back,
        edit,
        _psnr_of_vae(request),
        None if back is None else psnr(back, source),
        psnr(edit[outside], source[outside]),
        request.mask is not None,
    ).shown()
    if before and before[0].source.shape != row.source.shape:
        raise PalimpsestError(
            f"The source is shown in {_size(row.source)} pixels, those of the comparison so far in "
            f"{_size(before[0].source)}: compare pictures of one size."
        )
    return (*before, row)


def comparison_sheet(comparison: Comparison) -> Tensor:
    """[1, H, W, 3] a row for each method."""
    cells = [p for row in comparison for p in (row.source, row.reconstruction, row.edit)]
    labels = ["\n".join(row.lines) for row in comparison]
    return draw_sheet(
        Sheet(
            cells,
            columns=["source", "reconstruction", "edit"],
            rows=labels,
            title="Inversions compared" if len(comparison) > 1 else "An inversion",
            note=f"PSNR to the source. {_of_the_vae(comparison)}",
        )
    )


def _of_the_vae(comparison: Comparison) -> str:
    found = sorted({decibels(row.psnr_vae) for row in comparison})
    reached = found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"
    return f"The VAE alone, without any inversion, reaches {reached}."


def psnr(a: Tensor, b: Tensor) -> float:
    """Of numbers in 0..1, in dB; infinite where all are equal."""
    error = float((a.float() - b.float()).square().mean())
    return -10 * math.log10(error) if error else math.inf


def decibels(value: float) -> str:
    """A PSNR in words."""
    return "exact" if math.isinf(value) else f"{value:.1f} dB"


def _picture(image: Tensor, role: str) -> Tensor:
    """[H, W, 3] the only picture of an IMAGE.

    Raises:
        PalimpsestError: If it is a batch.
    """
    if len(image) != 1:
        raise PalimpsestError(
            f"The {role} holds {len(image)} pictures, a row compares one: take one out of the "
            "batch with ImageFromBatch (Latent From Batch for a latent)."
        )
    return image[0, ..., :3].float().cpu().clamp(0, 1)


def _decoded(request: CompareRequest, samples: Tensor, role: str) -> Tensor:
    """[H, W, 3] the picture of a LATENT.

    Raises:
        PalimpsestError: If it is a batch, or not of the source's size.
    """
    if len(samples) != 1:
        _picture(samples, role)
    picture = _picture(decode_pictures(request.vae, samples), role)
    wanted = request.source.shape[1:3]
    if picture.shape[:2] != wanted:
        raise PalimpsestError(
            f"The {role} is {_size(picture)} pixels, the source {_size(request.source[0])}: "
            "connect the picture that was encoded; VAEs crop sides that are no multiple of 8 "
            "(Flux.2: of 16)."
        )
    return picture


def _outside(request: CompareRequest) -> Tensor:
    """[H, W] bool: where nothing may change; everywhere if there is no mask.

    Raises:
        PalimpsestError: If the mask is a batch, of another size, or leaves nothing outside.
    """
    size = request.source.shape[1:3]
    if request.mask is None:
        return torch.ones(size, dtype=torch.bool)
    mask = mask_pictures(request.mask).cpu()
    if len(mask) != 1 or mask.shape[1:] != size:
        raise PalimpsestError(
            f"The mask is {len(mask)} x {_size(mask[0])} pixels, the source "
            f"1 x {_size(request.source[0])}: give one mask of the source's size."
        )
    outside = mask[0] <= 0
    if not bool(outside.any()):
        raise PalimpsestError(
            "The mask is white everywhere, nothing is outside it: leave it unconnected."
        )
    return outside


def _psnr_of_vae(request: CompareRequest) -> float:
    """PSNR of the source, encoded and decoded."""
    again = decode_pictures(request.vae, request.vae.encode(request.source[..., :3]))
    return psnr(_picture(again, "source"), _picture(request.source, "source"))


def _size(picture: Tensor) -> str:
    height, width = picture.shape[:2]
    return f"{width} x {height}"


def _no_larger(picture: Tensor) -> Tensor:
    """A picture [H, W, 3] made smaller where a side of it is too long."""
    longest = max(picture.shape[:2])
    if longest <= SHOWN:
        return picture
    size = [max(1, round(side * SHOWN / longest)) for side in picture.shape[:2]]
    smaller = interpolate(picture.movedim(-1, 0)[None], size=size, mode="area")
    return smaller[0].movedim(0, -1)
