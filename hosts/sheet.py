"""Labelled sheets of pictures, for people to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .comfy_pictures import as_picture

PAPER, INK, FAINT = (250, 250, 248), (30, 30, 34), (110, 110, 116)
GAP = 6


@dataclass(frozen=True, eq=False)
class Sheet:
    """Pictures in rows and columns, and what stands beside them.

    Attributes:
        pictures: [rows * columns, H, W, 3] in 0..1, row by row.
        columns: A label above each column.
        rows: A label left of each row.
        title: Above all.
    """

    pictures: Tensor
    columns: Sequence[str]
    rows: Sequence[str]
    title: str


def draw_sheet(sheet: Sheet) -> Tensor:
    """[1, H, W, 3] the sheet in 0..1; small pictures are shown larger, so that labels fit."""
    height, width = sheet.pictures.shape[1:3]
    zoom = max(1, -(-192 // max(width, 1)))
    width, height = width * zoom, height * zoom
    size = max(15, width // 16)
    font, heading = ImageFont.load_default(size), ImageFont.load_default(round(size * 1.25))
    left = max(int(font.getlength(label)) for label in sheet.rows) + 3 * GAP
    top = heading.size + font.size + 5 * GAP
    page = Image.new(
        "RGB",
        (
            left + len(sheet.columns) * (width + GAP),
            top + len(sheet.rows) * (height + GAP),
        ),
        PAPER,
    )
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP), sheet.title, INK, heading)
    for column, label in enumerate(sheet.columns):
        middle = left + column * (width + GAP) + width // 2
        pen.text((middle, top - GAP), label, FAINT, font, anchor="ms")
    for row, label in enumerate(sheet.rows):
        y = top + row * (height + GAP)
        pen.text((left - 2 * GAP, y + height // 2), label, FAINT, font, anchor="rm")
        for column in range(len(sheet.columns)):
            picture = as_picture(sheet.pictures[row * len(sheet.columns) + column])
            picture = picture.resize((width, height), Image.Resampling.NEAREST)
            page.paste(picture, (left + column * (width + GAP), y))
    return torch.from_numpy(numpy.asarray(page).copy()).float().div(255).unsqueeze(0)
