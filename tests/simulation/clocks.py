"""A site's wall clock: what the controllers there believe the time is.

Owns: skew, drift, steps and standing still.
Never: touches the loop's time, which timers use (CLOCK_MONOTONIC never steps).

Source: fault catalogue F28.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

EPOCH_NS: Final = 1_700_000_000_000_000_000


class SiteClock:
    """Wall time in ns. ``now_s``: the loop's time; ``skew_s``: how far it is off; ``drift``: seconds a second."""

    def __init__(self, now_s: Callable[[], float], skew_s: float = 0.0, drift: float = 0.0) -> None:
        self._now_s = now_s
        self._offset_ns = EPOCH_NS + int(skew_s * 1e9)
        self._pace = 1.0 + drift
        self._stuck_ns: int | None = None

    def __call__(self) -> int:
        """Return the wall time."""
        if self._stuck_ns is not None:
            return self._stuck_ns
        return self._offset_ns + int(self._now_s() * self._pace * 1e9)

    def step(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self._offset_ns += int(seconds * 1e9)

    def stop(self) -> None:
        """It shows the same time from now on."""
        self._stuck_ns = self()

    def go(self) -> None:
        """It shows the right time again."""
        self._stuck_ns = None
