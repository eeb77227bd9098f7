"""Write cache of one volume: what is journaled and not yet on its disks.

Owns: the newest content of every block written since the last destage, in two
layers: ``active`` takes new writes, ``frozen`` is being destaged.
Never: reads or writes disks, journals, or decides when to destage.

A layer is a dict from block number (4 KiB) to the block's content, plus a set of
regions that were zeroed or trimmed before those blocks were written. Content is a
view of the buffer that the write arrived in: nothing is copied (architecture §2).
Reading lays the layers over the disk from the oldest up; a block in a layer hides
the same layer's zeroed region, which hides everything older.
"""

from __future__ import annotations

from typing import Final

from typing_extensions import Buffer

BLOCK: Final = 4096
BLOCK_SHIFT: Final = 12
BLOCK_MASK: Final = BLOCK - 1
ZERO_BLOCK: Final = memoryview(bytes(BLOCK))


class PartialBlock:
    """A block of which only some byte ranges are known; the rest is older content."""

    __slots__ = ("data", "ranges")

    def __init__(self) -> None:
        self.data = bytearray(BLOCK)
        self.ranges: list[tuple[int, int]] = []

    def write(self, start: int, piece: Buffer) -> None:
        """Put ``piece`` at byte ``start`` of the block."""
        view = memoryview(piece)
        end = start + len(view)
        self.data[start:end] = view
        merged: list[tuple[int, int]] = []
        for low, high in self.ranges:
            if high < start or low > end:
                merged.append((low, high))
            else:
                start, end = min(low, start), max(high, end)
        merged.append((start, end))
        merged.sort()
        self.ranges = merged

    @property
    def full(self) -> bool:
        """Whether every byte of the block is known."""
        return self.ranges == [(0, BLOCK)]


Blocks = dict[int, memoryview | PartialBlock]


class Layers:
    """The cached writes of one volume, by block; ``region_shift`` is that of its pool."""

    __slots__ = ("active", "frozen", "frozen_zeroed", "region_shift", "zeroed")

    def __init__(self, region_shift: int) -> None:
        self.region_shift = region_shift
        self.active: Blocks = {}
        self.zeroed: set[int] = set()
        self.frozen: Blocks = {}
        self.frozen_zeroed: set[int] = set()

    @property
    def clean(self) -> bool:
        """Whether nothing waits to be destaged."""
        return not (self.active or self.zeroed or self.frozen or self.frozen_zeroed)

    def write(self, offset: int, data: memoryview) -> None:
        """Put ``data`` at byte ``offset`` of the volume; keeps a view of it."""
        active = self.active
        length = len(data)
        block = offset >> BLOCK_SHIFT
        head = offset & BLOCK_MASK
        position = 0
        if head:
            position = min(BLOCK - head, length)
            self._patch(block, head, data[:position])
            block += 1
        while length - position >= BLOCK:
            active[block] = data[position : position + BLOCK]
            position += BLOCK
            block += 1
        if position < length:
            self._patch(block, 0, data[position:])

    def _patch(self, block: int, start: int, piece: memoryview) -> None:
        present = self.active.get(block)
        if present is None:
            base = self._known(block)
            if base is None:
                present = self.active[block] = PartialBlock()
            else:
                merged = bytearray(base)
                merged[start : start + len(piece)] = piece
                self.active[block] = memoryview(merged)
                return
        if isinstance(present, PartialBlock):
            present.write(start, piece)
            if present.full:
                self.active[block] = memoryview(present.data)
        else:
            merged = bytearray(present)
            merged[start : start + len(piece)] = piece
            self.active[block] = memoryview(merged)

    def _known(self, block: int) -> memoryview | None:
        """Whole content of a block that is not in the active layer, if memory has it."""
        region = block << BLOCK_SHIFT >> self.region_shift
        if region in self.zeroed:
            return ZERO_BLOCK
        older = self.frozen.get(block)
        if older is None:
            return ZERO_BLOCK if region in self.frozen_zeroed else None
        return None if isinstance(older, PartialBlock) else older

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros: whole regions as a set, the edges as blocks of zeros."""
        shift = self.region_shift
        end = offset + length
        first = (offset + (1 << shift) - 1) >> shift
        last = end >> shift
        if first >= last:
            self._zero_blocks(offset, end)
            return
        self._zero_blocks(offset, first << shift)
        self._zero_blocks(last << shift, end)
        per_region = shift - BLOCK_SHIFT
        active = self.active
        if active:
            low, high = first << per_region, last << per_region
            if high - low < len(active):
                for block in range(low, high):
                    active.pop(block, None)
            else:
                for block in [block for block in active if low <= block < high]:
                    del active[block]
        self.zeroed.update(range(first, last))

    def _zero_blocks(self, offset: int, end: int) -> None:
        while offset < end:
            head = offset & BLOCK_MASK
            part = min(BLOCK - head, end - offset)
            if part == BLOCK:
                self.active[offset >> BLOCK_SHIFT] = ZERO_BLOCK
            else:
                self._patch(offset >> BLOCK_SHIFT, head, ZERO_BLOCK[:part])
            offset += part

    def touches(self, first: int, last: int) -> bool:
        """Whether any block from ``first`` to ``last`` (included) is in the cache."""
        active, frozen = self.active, self.frozen
        if self.zeroed or self.frozen_zeroed:
            return True
        for block in range(first, last + 1):  # noqa: SIM110 - a generator costs more than the loop here
            if block in active or block in frozen:
                return True
        return False

    def overlay(self, buffer: memoryview, offset: int) -> None:
        """Lay the cached content over ``buffer``, which holds the disks' content from byte ``offset`` on."""
        for zeroed, blocks in ((self.frozen_zeroed, self.frozen), (self.zeroed, self.active)):
            if zeroed:
                self._overlay_zeroed(zeroed, buffer, offset)
            if blocks:
                _overlay_blocks(blocks, buffer, offset)

    def _overlay_zeroed(self, zeroed: set[int], buffer: memoryview, offset: int) -> None:
        shift = self.region_shift
        end = offset + len(buffer)
        for region in range(offset >> shift, (end - 1 >> shift) + 1):
            if region in zeroed:
                low = max(region << shift, offset) - offset
                high = min(region + 1 << shift, end) - offset
                buffer[low:high] = bytes(high - low)

    def covers(self, offset: int, end: int) -> bool:
        """Whether memory alone knows every byte of the range (then no disk need be read)."""
        for block in range(offset >> BLOCK_SHIFT, (end - 1 >> BLOCK_SHIFT) + 1):
            present = self.active.get(block)
            if present is None:
                if self._known(block) is None:
                    return False
            elif isinstance(present, PartialBlock):
                return False
        return True

    def freeze(self) -> None:
        """Begin a destage: the active layer becomes the frozen one (which must be empty)."""
        assert not self.frozen
        assert not self.frozen_zeroed
        self.frozen, self.frozen_zeroed = self.active, self.zeroed
        self.active, self.zeroed = {}, set()

    def drop_frozen(self) -> None:
        """End a destage: the disks have what the frozen layer held."""
        self.frozen, self.frozen_zeroed = {}, set()


def _overlay_blocks(blocks: Blocks, buffer: memoryview, offset: int) -> None:
    end = offset + len(buffer)
    get = blocks.get
    for block in range(offset >> BLOCK_SHIFT, (end - 1 >> BLOCK_SHIFT) + 1):
        content = get(block)
        if content is None:
            continue
        base = block << BLOCK_SHIFT
        if isinstance(content, PartialBlock):
            for low, high in content.ranges:
                _copy(buffer, offset, end, base + low, content.data[low:high])
        else:
            _copy(buffer, offset, end, base, content)


def _copy(buffer: memoryview, offset: int, end: int, start: int, data: Buffer) -> None:
    """Copy ``data``, which belongs at byte ``start``, into the part of it that ``buffer`` covers."""
    view = memoryview(data)
    low = max(start, offset)
    high = min(start + len(view), end)
    if low < high:
        buffer[low - offset : high - offset] = view[low - start : high - start]
