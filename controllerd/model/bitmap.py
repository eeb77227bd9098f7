"""Difference map: one bit for each region of a volume that may differ from the peer.

Owns: the bits, and their stored form with its checksum.
Never: decides when a bit may be cleared, and never writes a file.

What a reader would get wrong: a bit too many costs a copied region, a bit too few is silent
divergence. So set before the write that is not mirrored is acknowledged, and clear only what
the peer has reported durable with equal content and generation (I12).

Source: BK ¶17; spec §7.3; invariant I12.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from crc32c import crc32c

from controllerd.model.errors import BadOrder, Corrupt

# Stored map, little-endian, then (regions + 7) // 8 bytes; region r is bit r % 8 of byte r // 8
#  0      4         8         16     20
#  +------+---------+---------+------+--------
#  | magic| version | regions | crc  | bits ...
#  +------+---------+---------+------+--------
# crc = CRC-32C of bytes 0..15 followed by the bits; unused bits of the last byte are 0
_HEADER: Final = struct.Struct("<IIQI")
_HEADER_BODY: Final = struct.Struct("<IIQ")
_MAGIC: Final = 0x4D444352  # "RCDM" in file order
_VERSION: Final = 1
assert _HEADER.size == 20
assert _HEADER_BODY.size == 16

# Full bytes come as one match, so that a wholly different terabyte is not walked bit by bit.
_NOT_EMPTY: Final = re.compile(rb"\xff+|[^\x00\xff]", re.DOTALL)


class DifferenceMap:
    """One bit per region, all clear at first."""

    __slots__ = ("_bits", "regions")

    def __init__(self, regions: int) -> None:
        if regions < 0:
            raise BadOrder(f"a difference map of {regions} regions is not possible", regions=regions)
        self.regions = regions
        self._bits = bytearray((regions + 7) // 8)

    def __contains__(self, region: int) -> bool:
        """Whether ``region`` may differ."""
        return 0 <= region < self.regions and bool(self._bits[region >> 3] >> (region & 7) & 1)

    def __eq__(self, other: object) -> bool:
        """Equal size and equal bits."""
        if not isinstance(other, DifferenceMap):
            return NotImplemented
        return self.regions == other.regions and self._bits == other._bits

    __hash__ = None  # type: ignore[assignment]  # mutable

    def set(self, region: int) -> None:
        """Mark one region.

        Raises:
            BadOrder: there is no such region.
        """
        if not 0 <= region < self.regions:
            raise self._outside(region, 1)
        self._bits[region >> 3] |= 1 << (region & 7)

    def set_range(self, first: int, count: int) -> None:
        """Mark ``count`` regions from ``first``.

        Raises:
            BadOrder: not wholly inside the map; nothing was marked.
        """
        self._fill(first, count, marked=True)

    def clear(self, first: int, count: int = 1) -> None:
        """Unmark ``count`` regions from ``first``: the peer has them durably (I12).

        Raises:
            BadOrder: not wholly inside the map; nothing was unmarked.
        """
        self._fill(first, count, marked=False)

    def count(self) -> int:
        """Return how many regions are marked."""
        return int.from_bytes(self._bits, "little").bit_count()

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield (first, count) of each longest run of marked regions, ascending, as they are at the first step."""
        start = end = 0
        for first, count in _pieces(bytes(self._bits)):
            if first == end:
                end += count
                continue
            if end > start:
                yield start, end - start
            start = first
            end = first + count
        if end > start:
            yield start, end - start

    def union(self, other: DifferenceMap) -> None:
        """Mark what ``other`` has marked, too.

        Raises:
            BadOrder: the maps have different sizes.
        """
        if other.regions != self.regions:
            raise BadOrder(f"maps of {self.regions} and {other.regions} regions cannot be united")
        mine = int.from_bytes(self._bits, "little")
        self._bits[:] = (mine | int.from_bytes(other._bits, "little")).to_bytes(len(self._bits), "little")

    def to_bytes(self) -> bytes:
        """Return the stored form."""
        body = _HEADER_BODY.pack(_MAGIC, _VERSION, self.regions)
        return _HEADER.pack(_MAGIC, _VERSION, self.regions, crc32c(self._bits, crc32c(body))) + self._bits

    @classmethod
    def from_bytes(cls, stored: bytes) -> DifferenceMap:
        """Return the map that ``to_bytes`` stored.

        Raises:
            Corrupt: not a whole, valid map; take every region as different.
        """
        if len(stored) < _HEADER.size:
            raise Corrupt("difference map is cut short")
        magic, version, regions, crc = _HEADER.unpack_from(stored)
        bits = stored[_HEADER.size :]
        if magic != _MAGIC or crc32c(bits, crc32c(stored[: _HEADER_BODY.size])) != crc:
            raise Corrupt("difference map checksum is wrong")
        if version != _VERSION or len(bits) != (regions + 7) // 8:
            raise Corrupt(f"difference map version {version} with {regions} regions is not known here")
        restored = cls(0)
        restored.regions = regions
        restored._bits = bytearray(bits)
        return restored

    def _fill(self, first: int, count: int, *, marked: bool) -> None:
        if first < 0 or count < 0 or first + count > self.regions:
            raise self._outside(first, count)
        if count == 0:
            return
        last = first + count - 1
        low, high = first >> 3, last >> 3
        mask_low = 0xFF << (first & 7) & 0xFF
        mask_high = 0xFF >> (7 - (last & 7))
        if low == high:
            self._mask(low, mask_low & mask_high, marked=marked)
            return
        self._mask(low, mask_low, marked=marked)
        self._bits[low + 1 : high] = (b"\xff" if marked else b"\x00") * (high - low - 1)
        self._mask(high, mask_high, marked=marked)

    def _mask(self, index: int, mask: int, *, marked: bool) -> None:
        if marked:
            self._bits[index] |= mask
        else:
            self._bits[index] &= ~mask & 0xFF

    def _outside(self, first: int, count: int) -> BadOrder:
        return BadOrder(
            f"regions {first}..{first + count - 1} are not inside a map of {self.regions}",
            first=first, count=count, regions=self.regions,
        )  # fmt: skip


def _pieces(bits: bytes) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of marked regions, ascending; neighbours are not joined across bytes."""
    for match in _NOT_EMPTY.finditer(bits):
        base = match.start() * 8
        byte = bits[match.start()]
        if byte == 0xFF:
            yield base, (match.end() - match.start()) * 8
            continue
        for bit in range(8):
            if byte >> bit & 1:
                yield base + bit, 1
