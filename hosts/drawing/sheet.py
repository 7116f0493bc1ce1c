"""Labelled sheets of pictures, for people to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER, INK, FAINT, EMPTY = (250, 250, 248), (30, 30, 34), (110, 110, 116), (238, 238, 234)
GAP = 6


@dataclass(frozen=True, eq=False)
class Sheet:
    """Pictures in rows and columns, and what stands beside them.

    Attributes:
        pictures: [rows * columns, H, W, 3] in 0..1, row by row; in a list None leaves a cell empty.
        columns: A label above each column, of one line or several.
        rows: A label left of each row. Of several lines the first is its name, the others say what
            there is to know about it; a tab parts a number from what it is a number of.
        title: Above all.
        note: A line below the title.
        least: Width in pixels below which pictures are shown larger, so that labels fit.
        captions: A label below each picture, row by row; none if empty.
        empty: What stands in a cell without a picture; "" leaves it blank.
    """

    pictures: Tensor | Sequence[Tensor | None]
    columns: Sequence[str]
    rows: Sequence[str]
    title: str
    note: str = ""
    least: int = 192
    captions: Sequence[str] = ()
    empty: str = "not followed"


def as_picture(image: Tensor) -> Image.Image:
    """A picture [H, W, 3] in 0..1 as PIL's."""
    pixels = image[..., :3].detach().float().cpu().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.numpy())


def draw_sheet(sheet: Sheet) -> Tensor:
    """[1, H, W, 3] the sheet in 0..1; small pictures are shown larger, so that labels fit.

    Raises:
        ValueError: If all its cells are empty.
    """
    layout = _Layout.of(sheet)
    page = Image.new("RGB", layout.page, PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((2 * GAP, 2 * GAP), sheet.title, INK, layout.heading)
    pen.text((2 * GAP, 3 * GAP + layout.heading.size), sheet.note, FAINT, layout.font)
    for column, label in enumerate(sheet.columns):
        x, _ = layout.corner(0, column)
        at = x + layout.size[0] // 2, layout.top - GAP
        pen.multiline_text(at, label, FAINT, layout.font, anchor="md", align="center")
    for row, label in enumerate(sheet.rows):
        _label_row(pen, layout, row, label.split("\n"))
        for column in range(len(sheet.columns)):
            picture = sheet.pictures[row * len(sheet.columns) + column]
            corner = layout.corner(row, column)
            if picture is None:
                _leave_empty(pen, layout, corner, sheet.empty)
            else:
                shown = as_picture(picture).resize(layout.size, Image.Resampling.NEAREST)
                page.paste(shown, corner)
            if sheet.captions:
                _caption(pen, layout, corner, sheet.captions[row * len(sheet.columns) + column])
    return torch.from_numpy(numpy.asarray(page).copy()).float().div(255).unsqueeze(0)


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where everything is.

    Attributes:
        size: Width and height of a picture.
        left: Width of the labels of the rows.
        top: Height of all that is above the first row.
        height: Of a row, gap included.
        page: Width and height of the whole.
        font: Of the labels.
        heading: Of title and names.
    """

    size: tuple[int, int]
    left: int
    top: int
    height: int
    page: tuple[int, int]
    font: ImageFont.FreeTypeFont
    heading: ImageFont.FreeTypeFont

    @classmethod
    def of(cls, sheet: Sheet) -> "_Layout":
        shape = next((p.shape for p in sheet.pictures if p is not None), None)
        if shape is None:
            raise ValueError("A sheet needs at least one picture.")
        zoom = max(1, -(-sheet.least // shape[1]))
        width, height = shape[1] * zoom, shape[0] * zoom
        size = max(15, width // 16)
        font, heading = ImageFont.load_default(size), ImageFont.load_default(round(size * 1.25))
        labels = [label.split("\n") for label in sheet.rows]
        left = max(_label_width(lines, font, heading) for lines in labels) + 5 * GAP
        tallest = max(len(lines) for lines in labels)
        below = _line(font) if sheet.captions else 0
        beside = (heading.size if tallest > 1 else 0) + tallest * _line(font)
        row = max(height + below, beside) + GAP
        above = max(label.count("\n") + 1 for label in sheet.columns) * _line(font)
        top = 4 * GAP + heading.size + above + GAP + (_line(font) if sheet.note else 0)
        title = max(heading.getlength(sheet.title), font.getlength(sheet.note)) + 4 * GAP
        across = max(left + len(sheet.columns) * (width + GAP) + GAP, int(title))
        page = (across, top + len(labels) * row + GAP)
        return cls((width, height), left, top, row, page, font, heading)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Upper left corner of a cell."""
        return self.left + column * (self.size[0] + GAP), self.top + row * self.height


def _line(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 1.35)


def _label_width(
    lines: list[str], font: ImageFont.FreeTypeFont, heading: ImageFont.FreeTypeFont
) -> int:
    first = (heading if len(lines) > 1 else font).getlength(lines[0])
    return int(max(first, *(font.getlength(line.replace("\t", "    ")) for line in lines[1:]), 0))


def _label_row(pen: ImageDraw.ImageDraw, layout: _Layout, row: int, lines: list[str]) -> None:
    """A label left of its row, half way down: one line at the pictures, several at the edge."""
    _, y = layout.corner(row, 0)
    middle = y + layout.size[1] // 2
    if len(lines) == 1:
        pen.text((layout.left - 2 * GAP, middle), lines[0], FAINT, layout.font, anchor="rm")
        return
    name, step = round(layout.heading.size * 1.45), _line(layout.font)
    y = max(y, middle - (name + step * (len(lines) - 1)) // 2)
    pen.text((2 * GAP, y), lines[0], INK, layout.heading)
    for number, line in enumerate(lines[1:]):
        what, _, value = line.partition("\t")
        below = y + name + number * step
        pen.text((2 * GAP, below), what, FAINT, layout.font)
        pen.text((layout.left - 3 * GAP, below), value, INK, layout.font, anchor="ra")


def _caption(
    pen: ImageDraw.ImageDraw, layout: _Layout, corner: tuple[int, int], label: str
) -> None:
    """A label below a picture."""
    x, y = corner
    at = x + layout.size[0] // 2, y + layout.size[1] + GAP // 2
    pen.text(at, label, INK, layout.font, anchor="ma")


def _leave_empty(
    pen: ImageDraw.ImageDraw, layout: _Layout, corner: tuple[int, int], told: str
) -> None:
    """A cell without a picture."""
    if not told:
        return
    x, y = corner
    width, height = layout.size
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=EMPTY)
    middle = (x + width // 2, y + height // 2)
    pen.text(middle, told, FAINT, layout.font, anchor="mm")
