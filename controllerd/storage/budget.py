"""Cache budget: one bound on the memory that journaled, not yet destaged writes take.

Owns: the count of cached bytes of the whole controller.
Never: frees anything; destaging does.
"""

from __future__ import annotations

from collections.abc import Callable


class CacheBudget:
    """``limit`` in bytes; ``used`` counts every byte written since the layers it lies in were begun."""

    __slots__ = ("_listeners", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._listeners: list[Callable[[], None]] = []

    @property
    def full(self) -> bool:
        """Whether hosts have to wait."""
        return self.used >= self.limit

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever bytes were released."""
        self._listeners.append(listener)

    def ignore(self, listener: Callable[[], None]) -> None:
        """Undo `listen`."""
        self._listeners.remove(listener)

    def release(self, size: int) -> None:
        """Give ``size`` bytes back."""
        self.used -= size
        for listener in self._listeners:
            listener()
