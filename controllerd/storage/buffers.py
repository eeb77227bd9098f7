"""Buffer pool: receive and reply memory, used again as soon as nobody refers to it.

Owns: which buffers exist that no connection fills at the moment.
Never: is told when a buffer is free. The write cache, the journal's tail and the
transport keep views of a buffer for as long as they like, and a view keeps a reference
to its buffer; a buffer to which only this pool refers is therefore free.

Why: memory fresh from the kernel costs a page fault per 4 KiB (2 µs on the machine where
this was measured, a quarter of what a 4 KiB write costs in all); memory that was used
before costs nothing. Reference counts are CPython's; the pool is its only user.
"""

from __future__ import annotations

from collections import deque
from sys import getrefcount
from typing import Final

_TRIES: Final = 8
"""Buffers looked at before a new one is made."""
_ONLY_HERE: Final = 3
"""References to a free buffer while it is looked at: the pool, the local name, and the argument of getrefcount."""


class BufferPool:
    """Buffers by size (callers use few sizes); at most ``bytes_max`` bytes are remembered."""

    __slots__ = ("_retired", "bytes_max", "held", "made", "reused", "used")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held = 0
        """Bytes remembered, those still referred to included."""
        self.made = 0
        self.reused = 0
        self.used = False
        """Whether anything was taken since the last `trim`."""
        self._retired: dict[int, deque[bytearray]] = {}

    def take(self, size: int) -> bytearray:
        """Return a buffer of exactly ``size`` bytes, with any content."""
        self.used = True
        retired = self._retired.get(size)
        if retired:
            for index in range(min(_TRIES, len(retired))):
                buffer = retired[index]
                if getrefcount(buffer) == _ONLY_HERE:
                    del retired[index]
                    self.held -= size
                    self.reused += 1
                    return buffer
        self.made += 1
        return bytearray(size)

    def retire(self, buffer: bytearray) -> None:
        """Take ``buffer`` over; the caller must drop its own references. Views elsewhere may live on."""
        size = len(buffer)
        retired = self._retired.setdefault(size, deque())
        self.held += size
        retired.append(buffer)
        while self.held > self.bytes_max:
            # Sizes of which most is here were needed once and are not now. Buffers come free more or less in the order
            # they were retired: the first one is stuck, or not needed.
            largest = max(self._retired, key=self._bytes_of)
            self._retired[largest].popleft()
            self.held -= largest

    def _bytes_of(self, size: int) -> int:
        return size * len(self._retired[size])

    def trim(self) -> None:
        """Give memory back if nothing was taken since the last call: for a timer, so that an idle server is small."""
        if not self.used:
            for size, retired in self._retired.items():
                self.held -= size * len(retired)
                retired.clear()
        self.used = False


def round_up(size: int) -> int:
    """Return the next power of two, at least ``size``."""
    return 1 << (size - 1).bit_length()
