"""Write cache against a dict of bytes: any mix of writes, zeroes, destages and reads."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.storage.layers import BLOCK, Layers, OwnBlock, pieces

REGION_SHIFT = 14
SIZE = 40 * BLOCK

Bytes = dict[int, int]
"""What is known of a volume: byte number to value."""


class _Model:
    """The same cache in the plainest way: two dicts of single bytes, and the disk beneath."""

    def __init__(self, disk: bytes) -> None:
        self.disk = bytearray(disk)
        self.active: Bytes = {}
        self.frozen: Bytes = {}

    def image(self, offset: int, length: int) -> bytes:
        return bytes(self.active.get(at, self.frozen.get(at, self.disk[at])) for at in range(offset, offset + length))


def _put(disk: bytearray, layers: Layers) -> None:
    """Destage the frozen layer as the destager does: zeroed regions first, then what lies over them."""
    for region in layers.frozen_zeroed:
        disk[region << REGION_SHIFT : region + 1 << REGION_SHIFT] = bytes(1 << REGION_SHIFT)
    after = 0
    for offset, content in pieces(layers.frozen, sorted(layers.frozen)):
        assert offset >= after, "pieces are in order and do not overlap"
        after = offset + len(content)
        disk[offset:after] = content


# Lengths around block and region ends, and any other.
_LENGTHS = st.one_of(
    st.sampled_from([1, 512, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK, 8 * BLOCK, 12 * BLOCK]),
    st.integers(1, 12 * BLOCK),
)
_OFFSETS = st.one_of(st.integers(0, 39).map(lambda block: block * BLOCK), st.integers(0, SIZE - 1))
_STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "write", "write", "zero", "freeze", "drop", "read"]), _OFFSETS, _LENGTHS),
    max_size=40,
)


@given(steps=_STEPS, seed=st.integers(0, 1000))
def test_reads_and_destages_give_what_a_dict_of_bytes_gives(steps: list[tuple[str, int, int]], seed: int) -> None:
    rng = random.Random(seed)
    model = _Model(rng.randbytes(SIZE))
    disk = bytearray(model.disk)
    layers = Layers(REGION_SHIFT)
    for step, offset, length in steps:
        length = min(length, SIZE - offset)
        if step == "write":
            data = rng.randbytes(length)
            layers.write(offset, memoryview(data))
            model.active.update(zip(range(offset, offset + length), data, strict=True))
        elif step == "zero":
            layers.zero(offset, length)
            model.active.update(dict.fromkeys(range(offset, offset + length), 0))
        elif step == "freeze" and not (layers.frozen or layers.frozen_zeroed):
            layers.freeze()
            model.frozen, model.active = model.active, {}
        elif step == "drop":
            _put(disk, layers)
            layers.drop_frozen()
            for at, value in model.frozen.items():
                model.disk[at] = value
            model.frozen = {}
            assert disk == model.disk
        _check(layers, disk, model, offset, length)
    _check(layers, disk, model, 0, SIZE)
    assert layers.clean == (not model.active and not model.frozen)


def _check(layers: Layers, disk: bytearray, model: _Model, offset: int, length: int) -> None:
    expected = model.image(offset, length)
    buffer = bytearray(disk[offset : offset + length])
    layers.overlay(memoryview(buffer), offset)
    assert buffer == expected
    if layers.covers(offset, offset + length):
        # The disk is not read then, so what is not in the cache would be seen here.
        buffer = bytearray(b"\xee" * length)
        layers.overlay(memoryview(buffer), offset)
        assert buffer == expected
    if not layers.touches(offset // BLOCK, (offset + length - 1) // BLOCK):
        assert disk[offset : offset + length] == expected


@given(st.lists(st.tuples(st.integers(0, BLOCK - 1), st.integers(1, 600)), max_size=20))
def test_ranges_of_a_patched_block_are_exactly_the_bytes_written(writes: list[tuple[int, int]]) -> None:
    block = OwnBlock(None)
    known: set[int] = set()
    for start, length in writes:
        length = min(length, BLOCK - start)
        block.write(start, memoryview(bytes(length)))
        known.update(range(start, start + length))
    ranges = list(block.ranges())
    assert [at for low, high in ranges for at in range(low, high)] == sorted(known)
    assert all(before[1] < after[0] for before, after in pairwise(ranges)), "joined where they meet"
    assert block.whole == (len(known) == BLOCK)


@pytest.mark.parametrize("count", [2, 3, 32])
def test_a_long_write_stays_in_one_piece(count: int) -> None:
    layers = Layers(16)
    data = memoryview(random.Random(count).randbytes(count * BLOCK))
    layers.write(5 * BLOCK, data)
    layers.write((6 + count) * BLOCK, data)
    assert [(offset // BLOCK, bytes(content)) for offset, content in pieces(layers.active, sorted(layers.active))] == [
        (5, bytes(data)),
        (6 + count, bytes(data)),
    ]


def test_memory_made_for_parts_of_blocks_is_told_once() -> None:
    layers = Layers(16)
    piece = memoryview(b"x")
    assert layers.write(10, piece) == BLOCK
    assert layers.write(20, piece) == 0
    assert layers.write(BLOCK - 1, memoryview(bytes(BLOCK + 2))) == BLOCK  # patches two blocks; the first has memory
    assert layers.write(8 * BLOCK, memoryview(bytes(2 * BLOCK))) == 0
    assert layers.write(8 * BLOCK + 1, piece) == BLOCK
    assert layers.zero(20 * BLOCK + 7, BLOCK) == 2 * BLOCK
