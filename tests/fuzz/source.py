"""Decisions taken from a fuzzer's bytes: which message comes next, and where the stream is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Bytes that are used up; afterwards everything is 0 or the first choice."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def left(self) -> int:
        """Bytes that are not used yet."""
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        """Return up to ``count`` bytes."""
        taken = self._data[self._position : self._position + count]
        self._position += len(taken)
        return taken

    def number(self, size: int) -> int:
        """Return a number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        return choices[self.number(1) % len(choices)]

    def pieces(self, stream: bytes) -> Iterator[bytes]:
        """Cut ``stream`` at places that the source decides: at each byte, here and there, or not at all."""
        while stream:
            size = self.pick([1 << 30, 1, 15, 28, 1000, 70_000]) + self.number(1)
            yield stream[:size]
            stream = stream[size:]
