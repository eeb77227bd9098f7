"""Waiting times between attempts: growing, bounded, and never the same for two controllers.

Owns: the next waiting time.
Never: sleeps.
"""

from __future__ import annotations

import random


class Backoff:
    """Doubles from ``low_s`` to ``high_s``; each value is spread over 0.5 to 1 of it by ``rng``."""

    def __init__(self, low_s: float, high_s: float, rng: random.Random) -> None:
        self._low_s = low_s
        self._high_s = high_s
        self._rng = rng
        self._next_s = low_s

    def reset(self) -> None:
        """Something worked: begin at the shortest wait again."""
        self._next_s = self._low_s

    def next_s(self) -> float:
        """Seconds to wait now; the following wait is longer."""
        wait_s = self._next_s * self._rng.uniform(0.5, 1.0)
        self._next_s = min(2 * self._next_s, self._high_s)
        return wait_s
