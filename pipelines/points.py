"""Drag points: what shall move where, in pixels of a picture."""

import json
from dataclasses import dataclass
from typing import Any

from .errors import QUOTED, PalimpsestError, quoted

#: Raised when the meaning of stored points changes; older numbers stay readable for ever.
VERSION = 1

#: Pixels at most of a side of a picture, and of a point's distance from its corner.
LONGEST_SIDE = 10**6

#: Pixels at most by which a side is off where a picture was scaled to whole cells.
ROUNDED = 8.0

#: (x, y) in pixels, from the upper left corner.
Point = tuple[float, float]

#: A handle, and where it is dragged to.
Pair = tuple[Point, Point]

_EXAMPLE = '{"version": 1, "size": [512, 512], "pairs": [[[145, 216], [146, 144]]]}'


@dataclass(frozen=True)
class DragPoints:
    """Handles and their targets on one picture.

    Attributes:
        size: Width and height of the picture in pixels.
        pairs: (handle, target), each inside the picture; may be none yet.
        radius: Pixels around a point that move with it; None where it is said elsewhere.
    """

    size: tuple[int, int]
    pairs: tuple[Pair, ...]
    radius: int | None = None

    def __post_init__(self) -> None:
        width, height = self.size
        if self.radius is not None and self.radius < 1:
            raise PalimpsestError(
                f"The radius of the points must be 1 pixel or more, got {self.radius}: raise it."
            )
        for number, pair in enumerate(self.pairs, 1):
            for name, (x, y) in zip(("handle", "target"), pair, strict=True):
                if not (0 <= x < width and 0 <= y < height):
                    raise PalimpsestError(
                        f"The {name} of drag {number} is at ({x:g}, {y:g}), outside the picture of "
                        f"{width} x {height} pixels: move it inside, or delete the drag."
                    )

    def on_picture(self, width: int, height: int) -> "DragPoints":
        """These points, for a picture of the size that they were set on.

        Raises:
            PalimpsestError: If the picture is of another size.
        """
        if self.size != (width, height):
            raise PalimpsestError(
                f"The points were set on a picture of {self.size[0]} x {self.size[1]} pixels, this "
                f"one is {width} x {height}: set the points anew, or connect the picture that they "
                "belong to."
            )
        return self

    def scaled_to(self, width: int, height: int) -> "DragPoints":
        """These points on a picture that was scaled: of the same shape, of another size.

        A picture is scaled to whole cells of a latent, so that a side may be off by some pixels.

        Raises:
            PalimpsestError: If the picture is of another shape.
        """
        if self.size == (width, height):
            return self
        zoom = (width * height / (self.size[0] * self.size[1])) ** 0.5
        sides = zip(self.size, (width, height), strict=True)
        if any(abs(side * zoom - wanted) > ROUNDED for side, wanted in sides):
            return self.on_picture(width, height)
        u, v = width / self.size[0], height / self.size[1]

        def moved(point: Point) -> Point:
            x, y = (point[0] + 0.5) * u - 0.5, (point[1] + 0.5) * v - 0.5
            return min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)

        pairs = tuple((moved(handle), moved(target)) for handle, target in self.pairs)
        radius = None if self.radius is None else max(1, round(self.radius * zoom))
        return DragPoints((width, height), pairs, radius)


def read_points(text: str) -> DragPoints:
    """Read points from their JSON form.

    Args:
        text: `{"version": 1, "size": [width, height], "pairs": [[[x, y], [x, y]], ...]}`.

    Raises:
        PalimpsestError: If it is no such text, of a newer version, or a point lies outside.
    """
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"no JSON ({str(error)[:QUOTED]})") from error
    if not isinstance(stored, dict):
        raise _malformed("no object")
    version = stored.get("version")
    if version is True or version != VERSION:
        raise PalimpsestError(
            f"The points are of version {quoted(version)}, this version reads {VERSION}: "
            "update ComfyUI-Palimpsest, or set the points anew."
        )
    size, pairs = stored.get("size"), stored.get("pairs")
    if not (isinstance(size, list) and len(size) == 2 and all(_is_length(n) for n in size)):
        raise _malformed(f"size {quoted(size)}, which must be the picture's width and height")
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise _malformed("pairs that are not [[x, y], [x, y]] in numbers")
    return DragPoints((size[0], size[1]), tuple(tuple((x, y) for x, y in pair) for pair in pairs))


def write_points(points: DragPoints) -> str:
    """The JSON form of points, which `read_points` reads."""
    return json.dumps({"version": VERSION, "size": points.size, "pairs": points.pairs})


def _is_length(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and 0 < value <= LONGEST_SIDE


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_point(v) for v in value)


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        and all(abs(v) <= LONGEST_SIDE for v in value)  # false for NaN too
    )


def _malformed(what: str) -> PalimpsestError:
    return PalimpsestError(
        f"The drag points cannot be read, they are {what}: use the editor on Drag Points, or give "
        f"text such as {_EXAMPLE}."
    )
