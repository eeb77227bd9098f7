"""Blocks and superblocks: there and back, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostsim.stamp import (
    BLOCK_SIZES,
    CHAINS_MAX,
    Kind,
    Stamp,
    StampError,
    Superblock,
    decode_superblock_untrusted,
    decode_untrusted,
    encode,
    encode_superblock,
)

U8 = st.integers(0, 0xFF)
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, (1 << 64) - 1)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
STAMPS = st.builds(
    Stamp,
    run=U64,
    kind=st.sampled_from(Kind),
    host=U8,
    chain=U8,
    chains=U8,
    volume=U16,
    block=U64,
    counter=U64,
    txn=U64,
    issued_ns=U64,
    write_time=U64,
    seen=st.tuples(*[U64] * CHAINS_MAX),
    source=U32,
    target=U32,
    amount=I64,
    source_balance=I64,
    target_balance=I64,
)
SUPERBLOCK = Superblock(1, 2, 3, 0, 4, 2, 12, 64, 32, 4096)


@given(stamp=STAMPS, size=st.sampled_from(BLOCK_SIZES))
def test_block_there_and_back(stamp: Stamp, size: int) -> None:
    data = encode(stamp, size)
    assert len(data) == size
    assert decode_untrusted(data) == stamp


@given(data=st.binary(min_size=512, max_size=512))
def test_random_bytes_are_no_block(data: bytes) -> None:
    with pytest.raises(StampError):
        decode_untrusted(data)


def test_two_writes_differ_in_every_sector() -> None:
    """So that a block of which only some sectors were written cannot check out."""
    stamp = Stamp(1, Kind.DEBIT, 1, 2, 3, 4, 5, 6, 7, 8, 9, (0,) * CHAINS_MAX, 1, 2, 3, 4, 5)
    other = Stamp(1, Kind.DEBIT, 1, 2, 3, 4, 5, 10, 7, 8, 9, (0,) * CHAINS_MAX, 1, 2, 3, 4, 5)
    first, second = encode(stamp, 4096), encode(other, 4096)
    for at in range(0, 4096, 512):
        assert first[at : at + 512] != second[at : at + 512]


def test_superblock_there_and_back() -> None:
    assert decode_superblock_untrusted(encode_superblock(SUPERBLOCK)) == SUPERBLOCK
    assert decode_superblock_untrusted(encode_superblock(SUPERBLOCK) + b"more") == SUPERBLOCK
    assert decode_superblock_untrusted(bytes(4096)) is None


@given(at=st.integers(0, 4095), bit=st.integers(0, 7))
def test_damaged_superblock_is_found(at: int, bit: int) -> None:
    data = bytearray(encode_superblock(SUPERBLOCK))
    data[at] ^= 1 << bit
    with pytest.raises(StampError):
        decode_superblock_untrusted(bytes(data))


@pytest.mark.parametrize("length", [1, 55, 56, 511, 4095])
def test_short_superblock_is_found(length: int) -> None:
    with pytest.raises(StampError):
        decode_superblock_untrusted(encode_superblock(SUPERBLOCK)[:length])
