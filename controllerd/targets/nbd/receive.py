"""Receive memory of one connection: where the socket's bytes go and where parsing is.

Owns: the chunk that is being filled, and moving on to another one.
Never: parses requests, or writes to memory that storage may have kept a view of.

A staged write is kept by the write cache as a view of this memory, without a copy. So a
part of a chunk that held a payload is never filled again; only a chunk in which no
payload was staged starts over at its beginning. When the rest of a chunk is too small,
the unparsed tail (part of one request) is copied to a fresh one.
"""

from __future__ import annotations

from typing import Final

from controllerd.storage.buffers import BufferPool, round_up
from controllerd.targets.nbd.settings import Limits

LOW_ROOM: Final = 32 << 10
"""Less room than this at the end of a chunk is not worth a call to the kernel."""
_BURSTS: Final = 4
"""A chunk has room for this many of the largest burst seen."""


class Receive:
    """``chunk[position:end]`` is received and not parsed; ``retained`` says that storage keeps part of the chunk."""

    __slots__ = ("_limits", "_pool", "chunk", "end", "largest", "position", "retained", "view")

    def __init__(self, pool: BufferPool, limits: Limits, initial: bytes = b"") -> None:
        self._pool = pool
        self._limits = limits
        self.chunk = pool.take(max(limits.chunk_min, round_up(len(initial) + LOW_ROOM)))
        self.view = memoryview(self.chunk)
        self.view[: len(initial)] = initial
        self.position = 0
        self.end = len(initial)
        self.retained = False
        self.largest = 0
        """Most bytes that arrived at once in this chunk."""

    def make_room(self, needed: int) -> None:
        """Call it when nothing complete is left to parse, before receiving more.

        ``needed`` is how many bytes the request at ``position`` takes in all, at most ``chunk_max - LOW_ROOM``.
        """
        size = len(self.chunk)
        if self.position == self.end and not self.retained:
            self.position = self.end = 0
            if self.largest <= size >> 1 or size >= self._limits.chunk_max:
                return
            self._replace(needed)
        elif self.position + needed > size or (needed <= LOW_ROOM and size - self.end < LOW_ROOM):
            if self.retained or needed + LOW_ROOM > size:
                self._replace(needed)
            else:
                tail = self.end - self.position
                self.view[:tail] = self.view[self.position : self.end]
                self.position, self.end = 0, tail

    def _replace(self, needed: int) -> None:
        limits = self._limits
        wanted = max(limits.chunk_min, min(_BURSTS * self.largest, limits.chunk_max), needed + LOW_ROOM)
        chunk = self._pool.take(round_up(wanted))
        view = memoryview(chunk)
        tail = self.end - self.position
        view[:tail] = self.view[self.position : self.end]
        self._release()
        self.chunk, self.view = chunk, view
        self.position, self.end = 0, tail
        self.retained = False
        self.largest = 0

    def _release(self) -> None:
        self.view = memoryview(b"")
        retired, self.chunk = self.chunk, bytearray()
        self._pool.retire(retired)

    def close(self) -> None:
        """Give the memory back; views that storage keeps stay valid."""
        self.position = self.end = 0
        self._release()
