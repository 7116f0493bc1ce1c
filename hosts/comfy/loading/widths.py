"""Channel widths as ComfyUI's networks want them: a base width and one multiplier per level."""

from collections.abc import Sequence
from fractions import Fraction


class Multiplier(Fraction):
    """A broken multiplier whose product with the base width is the whole width again."""

    def __mul__(self, base: int) -> int:
        return int(super().__mul__(base))

    __rmul__ = __mul__


def multipliers(widths: Sequence[int]) -> list[int | Multiplier]:
    """What to multiply the first width with to get each of them.

    Whole numbers where possible. ComfyUI computes `multiplier * base`, so (64, 96) needs a 3/2
    whose product is the int 96: a float's would be 96.0, which no layer takes.
    """
    base = widths[0]
    return [w // base if w % base == 0 else Multiplier(w, base) for w in widths]
