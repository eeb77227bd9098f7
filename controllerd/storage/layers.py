"""Write cache of one volume: what is journaled and not yet on its disks.

Owns: the newest content of every block written since the last destage, in two
layers: ``active`` takes new writes, ``frozen`` is being destaged.
Never: reads or writes disks, journals, or decides when to destage.

A layer is a dict from block number (4 KiB) to what holds the block's content, plus a
set of regions that were zeroed or trimmed before those blocks were written. Content is
a view of the buffer that the write arrived in: nothing is copied (architecture §2). All
blocks of a longer write share one `Run`, so that reads and destages find it in one piece
again, as far as newer writes left it.
Reading lays the layers over the disk from the oldest up; a block in a layer hides
the same layer's zeroed region, which hides everything older.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from typing_extensions import Buffer

BLOCK: Final = 4096
BLOCK_SHIFT: Final = 12
BLOCK_MASK: Final = BLOCK - 1
ZERO_BLOCK: Final = memoryview(bytes(BLOCK))
_ALL_KNOWN: Final = (1 << BLOCK) - 1


class Run:
    """The whole blocks of one write, from block number ``first`` to before ``end``."""

    __slots__ = ("data", "end", "first")

    def __init__(self, first: int, end: int, data: memoryview) -> None:
        self.first = first
        self.end = end
        self.data = data

    def part(self, block: int, count: int) -> memoryview:
        """Content of ``count`` blocks from ``block`` on."""
        start = block - self.first << BLOCK_SHIFT
        return self.data[start : start + (count << BLOCK_SHIFT)]


class OwnBlock:
    """A block with memory of its own, patched in place; bytes that are not ``known`` are older content.

    ``known``: one bit per byte of the block, the lowest for its first.
    """

    __slots__ = ("data", "known")

    def __init__(self, base: Buffer | None) -> None:
        """Begin with the content ``base``, or with nothing known."""
        self.data = bytearray(BLOCK if base is None else base)
        self.known = 0 if base is None else _ALL_KNOWN

    def write(self, start: int, piece: memoryview) -> None:
        """Put ``piece`` at byte ``start`` of the block."""
        length = len(piece)
        self.data[start : start + length] = piece
        self.known |= ((1 << length) - 1) << start

    @property
    def whole(self) -> bool:
        """Whether every byte of the block is known."""
        return self.known == _ALL_KNOWN

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (low, high) of the known bytes, in order."""
        known, position = self.known, 0
        while known:
            skip = (known & -known).bit_length() - 1
            known >>= skip
            length = (~known & known + 1).bit_length() - 1
            known >>= length
            low = position + skip
            position = low + length
            yield low, position


Content = memoryview | Run | OwnBlock
Blocks = dict[int, Content]


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

    def write(self, offset: int, data: memoryview) -> int:
        """Put ``data`` at byte ``offset`` of the volume; keeps a view of it.

        Returns how many bytes of memory were made besides: for blocks that are written in part.
        """
        length = len(data)
        block = offset >> BLOCK_SHIFT
        head = offset & BLOCK_MASK
        position = made = 0
        if head:
            position = min(BLOCK - head, length)
            made = self._patch(block, head, data[:position])
            block += 1
        count = length - position >> BLOCK_SHIFT
        if count:
            whole = data[position : position + (count << BLOCK_SHIFT)]
            if count == 1:
                self.active[block] = whole
            else:
                self.active.update(dict.fromkeys(range(block, block + count), Run(block, block + count, whole)))
            block += count
            position += count << BLOCK_SHIFT
        if position < length:
            made += self._patch(block, 0, data[position:])
        return made

    def _patch(self, block: int, start: int, piece: memoryview) -> int:
        present = self.active.get(block)
        if isinstance(present, OwnBlock):
            present.write(start, piece)
            return 0
        base = self._known(block) if present is None else _whole(present, block)
        own = self.active[block] = OwnBlock(base)
        own.write(start, piece)
        return BLOCK

    def _known(self, block: int) -> Buffer | None:
        """Whole content of a block that is not in the active layer, if memory has it."""
        region = block << BLOCK_SHIFT >> self.region_shift
        if region in self.zeroed:
            return ZERO_BLOCK
        older = self.frozen.get(block)
        if older is None:
            return ZERO_BLOCK if region in self.frozen_zeroed else None
        return _whole(older, block)

    def zero(self, offset: int, length: int) -> int:
        """Make a range read as zeros: whole regions as a set, the edges as blocks of zeros.

        Returns how many bytes of memory were made for it, as `write` does.
        """
        shift = self.region_shift
        end = offset + length
        first = (offset + (1 << shift) - 1) >> shift
        last = end >> shift
        if first >= last:
            return self._zero_blocks(offset, end)
        made = self._zero_blocks(offset, first << shift)
        made += self._zero_blocks(last << shift, end)
        per_region = shift - BLOCK_SHIFT
        active = self.active
        if active:
            low, high = first << per_region, last << per_region
            for block in list(among(active, range(low, high))):
                del active[block]
        self.zeroed.update(range(first, last))
        return made

    def _zero_blocks(self, offset: int, end: int) -> int:
        made = 0
        while offset < end:
            head = offset & BLOCK_MASK
            part = min(BLOCK - head, end - offset)
            if part == BLOCK:
                self.active[offset >> BLOCK_SHIFT] = ZERO_BLOCK
            else:
                made += self._patch(offset >> BLOCK_SHIFT, head, ZERO_BLOCK[:part])
            offset += part
        return made

    def touches(self, first: int, last: int) -> bool:
        """Whether any block from ``first`` to ``last`` (included) may be in the cache."""
        if self.zeroed or self.frozen_zeroed:
            return True
        numbers = range(first, last + 1)
        return not (self.active.keys().isdisjoint(numbers) and self.frozen.keys().isdisjoint(numbers))

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
            elif type(present) is OwnBlock and not present.whole:
                return False
        return True

    def freeze(self) -> None:
        """Begin a destage: the active layer becomes the frozen one (which must be empty)."""
        assert not self.frozen
        assert not self.frozen_zeroed
        self.frozen, self.frozen_zeroed = self.active, self.zeroed
        self.active, self.zeroed = {}, set()

    def drop_frozen(self) -> Blocks:
        """End a destage: the disks have what the frozen layer held. Returns its blocks, which nobody needs any more."""
        dropped = self.frozen
        self.frozen, self.frozen_zeroed = {}, set()
        return dropped


def pieces(blocks: Blocks, order: list[int]) -> Iterator[tuple[int, memoryview]]:
    """Yield (byte offset in the volume, content) of a layer's blocks, a write in as few pieces as newer ones left it.

    ``order``: the blocks' numbers, sorted.
    """
    get = blocks.__getitem__
    index, end = 0, len(order)
    while index < end:
        block = order[index]
        content = get(block)
        index += 1
        if type(content) is memoryview:
            yield block << BLOCK_SHIFT, content
        elif type(content) is Run:
            last = index - 1 + content.end - block
            if last <= end and order[last - 1] == content.end - 1:
                count = [*map(get, order[index - 1 : last])].count(content)
            else:
                count = 0
            if count == content.end - block:  # nothing newer lies in the rest of the run
                index = last
            else:
                count = 1
                while index < end and order[index] == block + count and get(order[index]) is content:
                    index += 1
                    count += 1
            yield block << BLOCK_SHIFT, content.part(block, count)
        else:
            assert type(content) is OwnBlock
            view = memoryview(content.data)
            for low, high in content.ranges():
                yield (block << BLOCK_SHIFT) + low, view[low:high]


def among(blocks: Blocks, numbers: range) -> Iterable[int]:
    """Return those of the block numbers that are in ``blocks``; takes time for the smaller of both only."""
    if len(numbers) < len(blocks):
        return filter(blocks.__contains__, numbers)
    return filter(numbers.__contains__, blocks)


def _whole(content: Content, block: int) -> Buffer | None:
    """All bytes of a block, or None if only some are known."""
    if type(content) is Run:
        return content.part(block, 1)
    if type(content) is OwnBlock:
        return content.data if content.whole else None
    assert type(content) is memoryview
    return content


def _overlay_blocks(blocks: Blocks, buffer: memoryview, offset: int) -> None:
    end = offset + len(buffer)
    get = blocks.get
    block = offset >> BLOCK_SHIFT
    after = (end - 1 >> BLOCK_SHIFT) + 1
    while block < after:
        content = get(block)
        base = block << BLOCK_SHIFT
        block += 1
        if content is None:
            continue
        if type(content) is Run:
            first = block - 1
            limit = min(content.end, after)
            while block < limit and get(block) is content:
                block += 1
            _copy(buffer, offset, end, base, content.part(first, block - first))
        elif type(content) is OwnBlock:
            view = memoryview(content.data)
            for low, high in content.ranges():
                _copy(buffer, offset, end, base + low, view[low:high])
        else:
            assert type(content) is memoryview
            _copy(buffer, offset, end, base, content)


def _copy(buffer: memoryview, offset: int, end: int, start: int, data: memoryview) -> None:
    """Copy ``data``, which belongs at byte ``start``, into the part of it that ``buffer`` covers."""
    low = max(start, offset)
    high = min(start + len(data), end)
    if low < high:
        buffer[low - offset : high - offset] = data[low - start : high - start]
