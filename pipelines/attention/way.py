"""The way of a source's rows through their network, which may be left once all is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .hooks import Site


class Left(Exception):
    """The source's rows have left their network: what a step reads is there, or has no room."""


@dataclass
class Way:
    """The places that a call passes, in order; known once a call went to its end."""

    _known: tuple[Site, ...] = ()
    _passed: list[Site] = field(default_factory=list)
    _last: int | None = None

    def start(self, read: Callable[[Site], bool] | None = None) -> None:
        """Begin a call; it is left after the last place that is read. None leaves it nowhere."""
        known = () if read is None else self._known
        self._last = max((i for i, site in enumerate(known) if read(site)), default=None)
        self._passed = []

    def go(self, site: Site) -> None:
        """Pass a place.

        Raises:
            Left: After the last that is read; not in a call that went another way than the known.
        """
        self._passed.append(site)
        here = len(self._passed) - 1
        if self._last is None or here > self._last or self._known[here] != site:
            self._last = None
        elif here == self._last:
            raise Left

    def end(self) -> None:
        """The call went to its end."""
        self._known = tuple(self._passed)
