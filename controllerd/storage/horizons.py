"""Horizons: up to which sequence number writes are complete, and who waits for it.

Owns: the order in which waiting acknowledgements are released.
Never: decides how far a horizon may go (the group does).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from controllerd.model.errors import RemoteCopyError

Waiter = Callable[[RemoteCopyError | None], None]


class Horizon:
    """A sequence number that grows, and callbacks waiting for it in order of number."""

    __slots__ = ("_waiting", "reached")

    def __init__(self, reached: int = 0) -> None:
        self.reached = reached
        self._waiting: deque[tuple[int, Waiter]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def when(self, sequence: int, waiter: Waiter) -> None:
        """Call ``waiter(None)`` once ``sequence`` is reached: now, if it is."""
        if sequence <= self.reached:
            waiter(None)
            return
        waiting = self._waiting
        place = len(waiting)
        while place and waiting[place - 1][0] > sequence:
            place -= 1
        waiting.insert(place, (sequence, waiter))

    def advance(self, sequence: int) -> None:
        """Move to ``sequence`` if that is further, and release who waited for it."""
        if sequence <= self.reached:
            return
        self.reached = sequence
        waiting = self._waiting
        while waiting and waiting[0][0] <= sequence:
            waiting.popleft()[1](None)

    def step_back(self, sequence: int) -> None:
        """Move back to ``sequence``, unless someone waits: a stricter rule holds from now on."""
        if not self._waiting and sequence < self.reached:
            self.reached = sequence

    def fail(self, error: RemoteCopyError, through: int | None = None) -> None:
        """Release everyone who waits (for at most ``through``) with an error."""
        waiting = self._waiting
        failed: list[Waiter] = []
        while waiting and (through is None or waiting[0][0] <= through):
            failed.append(waiting.popleft()[1])
        for waiter in failed:  # one that waits again is not among them
            waiter(error)
