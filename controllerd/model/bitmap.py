"""Difference map: one bit for each granule of a volume that may differ from the peer.

Owns: the bits, and reading a part of them as runs.
Never: decides when a bit is set, or what a granule is.

What a reader would get wrong: a bit too many costs a copied granule, a bit too few is silent
divergence. So there is no way to clear a bit: whoever knows that the peer has everything begins a new map (I12).

Source: BK ¶17; spec §7.3; invariant I12.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from controllerd.model.errors import BadOrder

_RUN: Final = re.compile("0+|1+")


class DifferenceMap:
    """One bit per granule, all clear at first."""

    __slots__ = ("_bits", "granules")

    def __init__(self, granules: int) -> None:
        if granules < 0:
            raise BadOrder(f"a difference map of {granules} granules is not possible", granules=granules)
        self.granules = granules
        self._bits = bytearray((granules + 7) // 8)

    def set(self, first: int, count: int = 1) -> None:
        """Mark ``count`` granules from ``first``.

        Raises:
            BadOrder: not wholly inside the map; nothing was marked.
        """
        if first < 0 or count < 1 or first + count > self.granules:
            raise BadOrder(
                f"granules {first}..{first + count - 1} are not inside a map of {self.granules}",
                first=first, count=count, granules=self.granules,
            )  # fmt: skip
        bits = self._bits
        last = first + count - 1
        low, high = first >> 3, last >> 3
        mask_low = 0xFF << (first & 7) & 0xFF
        mask_high = 0xFF >> (7 - (last & 7))
        if low == high:
            bits[low] |= mask_low & mask_high
            return
        bits[low] |= mask_low
        bits[low + 1 : high] = b"\xff" * (high - low - 1)
        bits[high] |= mask_high

    def part(self, first: int, count: int) -> int:
        """Return the bits of ``count`` granules from ``first`` as a number, whose bit 0 is that of ``first``."""
        found = int.from_bytes(self._bits[first >> 3 : (first + count + 7) >> 3], "little")
        return found >> (first & 7) & (1 << count) - 1


def runs(part: int, count: int) -> Iterator[tuple[int, bool]]:
    """Yield (granules, marked) of the longest runs that make up ``count`` granules of `DifferenceMap.part`."""
    for match in _RUN.finditer(f"{part:0{count}b}"[::-1]):
        yield match.end() - match.start(), match[0][0] == "1"
