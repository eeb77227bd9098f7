"""A limit on the log lines that strangers can cause.

Owns: how many events of connections that came to nothing are passed on. Never: drops a counter, or what a session does.

Anybody who reaches the port can connect and be refused thousands of times a second, and each time is a line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_WINDOW_S: Final = 10.0
_EVENTS_MAX: Final = 100
"""Events passed on in one window."""


class EventLimit:
    """Counts events by windows of time; ``now`` gives seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._window_end = 0.0
        self._events = 0

    def passes(self) -> tuple[bool, int]:
        """Return whether an event is to be passed on, and how many were not since the last time that is told."""
        now = self._now()
        suppressed = 0
        if now >= self._window_end:
            suppressed = max(0, self._events - _EVENTS_MAX)
            self._window_end = now + _WINDOW_S
            self._events = 0
        self._events += 1
        return self._events <= _EVENTS_MAX, suppressed
