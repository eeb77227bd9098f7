"""Event loop with virtual time: waiting costs nothing, and the same callbacks run in the same order every time.

Owns: the clock of the loop.
Never: polls a socket; whatever waits for one waits for ever, and that is reported as `Deadlock`.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class Deadlock(Exception):
    """Nothing is ready and no timer is set: the program would wait for ever."""


class _VirtualSelector(selectors.SelectSelector):
    """Takes the time that the loop wants to sleep as passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock("no callback is ready and no timer is set")
        if timeout > 0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose `time` begins with 0 and moves only when nothing is ready."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)
        # Tasks that a crash has killed are nobody's concern any more.
        self.set_exception_handler(lambda _loop, _context: None)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual.now
