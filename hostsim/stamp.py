"""What stands in every block of the bank workload: who wrote it, when, after what, and which money it moves.

Owns: the block and superblock formats, encode and decode. Never: reads or writes a volume, knows where a block belongs.

Every block is written whole and carries a checksum over the whole block, so that half a write shows. Its stamp says
which write of which chain it is (``counter``) and, for every chain, how many writes had been acknowledged before this
one was issued (``seen``, a vector clock): an image proves by itself that no write is in it without its predecessors.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

CHAINS_MAX = 16
BLOCK_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 65536)
FORMAT_VERSION = 1

TRACE = b"RCBANK"
"""Every block that hostsim writes begins with it."""
_BLOCK_MAGIC = b"RCBANK\x00\x01"
_SUPER_MAGIC = b"RCBANKSB"


class StampError(ValueError):
    """Bytes that are no valid block; the text says what is wrong with them."""


class Kind(IntEnum):
    """The four writes of a transfer, in the order in which a chain issues them."""

    INTENT = 1
    DEBIT = 2
    CREDIT = 3
    COMMIT = 4


# A block, big-endian; version 1 of the format:
#   0        8        16     17     18      19       20       22      24
#   +--------+--------+------+------+-------+--------+--------+-------+
#   | magic  | run    | kind | host | chain | chains | volume | zero  |
#   +--------+--------+------+------+-------+--------+--------+-------+
#   24       32        40     48             56          64
#   +--------+---------+------+--------------+-----------+
#   | block  | counter | txn  | issued at ns | time ns   |   time: the write time given, 0 from an open host
#   +--------+---------+------+--------------+-----------+
#   64                                         192
#   +------------------------------------------+
#   | seen: 16 counters, one for each chain    |
#   +------------------------------------------+
#   192     196     200      208            216               224
#   +-------+-------+--------+--------------+-----------------+---- - - -+--------+
#   | from  | to    | amount | from balance | to balance      | filler   | crc32  |   crc32: zlib's, of all before it
#   +-------+-------+--------+--------------+-----------------+---- - - -+--------+
# A debit fills in `from balance` only and a credit `to balance` only; the other is 0.
_BLOCK = struct.Struct(">8sQBBBBHHQQQQQ16QIIqqq")
assert _BLOCK.size == 224
_CRC = struct.Struct(">I")
_FILLER = struct.Struct(">BQQ")

# The superblock, block 0 of every volume, big-endian; the rest of the block is zero, its last 4 bytes are the crc32:
#   0       8         10       12     14       16       18         20      24       28         32    40     48
#   +-------+---------+--------+------+--------+--------+----------+-------+--------+----------+-----+------+------+
#   | magic | version | volume | of   | ledger | chains | accounts | slots | size B | zero     | run | seed | made |
#   +-------+---------+--------+------+--------+--------+----------+-------+--------+----------+-----+------+------+
_SUPER = struct.Struct(">8sHHHHHHIIIQQQ")
assert _SUPER.size == 56


@dataclass(frozen=True, slots=True)
class Stamp:
    """One block's content. Money in whole units, times in nanoseconds since 1970, accounts count within the chain."""

    run: int
    kind: Kind
    host: int
    chain: int
    chains: int
    volume: int
    block: int
    counter: int
    txn: int
    issued_ns: int
    write_time: int
    seen: tuple[int, ...]
    source: int
    target: int
    amount: int
    source_balance: int
    target_balance: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """What `hostsim format` decided for a set of volumes; the same on all of them but for ``volume``.

    ``ledgers``: how many of the volumes, the last ones, hold the log. ``accounts`` and ``slots`` (transfers that the
    log remembers) are for each chain. ``seed`` decides every transfer there will ever be.
    """

    run: int
    seed: int
    made_ns: int
    volume: int
    volumes: int
    ledgers: int
    chains: int
    accounts: int
    slots: int
    block_size: int


def encode(stamp: Stamp, block_size: int) -> bytes:
    """Return the block, ``block_size`` bytes."""
    padded = (*stamp.seen, *(0 for _ in range(CHAINS_MAX - len(stamp.seen))))
    head = _BLOCK.pack(
        _BLOCK_MAGIC,
        stamp.run,
        stamp.kind,
        stamp.host,
        stamp.chain,
        stamp.chains,
        stamp.volume,
        0,
        stamp.block,
        stamp.counter,
        stamp.txn,
        stamp.issued_ns,
        stamp.write_time,
        *padded,
        stamp.source,
        stamp.target,
        stamp.amount,
        stamp.source_balance,
        stamp.target_balance,
    )
    # Filler differs between any two writes, so that a block of which only some sectors were written never checks out.
    room = block_size - _BLOCK.size - _CRC.size
    pattern = _FILLER.pack(stamp.chain, stamp.counter, stamp.run)
    body = head + (pattern * (room // len(pattern) + 1))[:room]
    return body + _CRC.pack(zlib.crc32(body))


def decode_untrusted(data: bytes) -> Stamp:
    """Return what a block says. Raises StampError; a block that was never written is the caller's to recognise."""
    body = memoryview(data)[: -_CRC.size]
    if data[: len(_BLOCK_MAGIC)] != _BLOCK_MAGIC:
        raise StampError("it is not a block of the bank (magic)")
    if _CRC.unpack_from(data, len(body))[0] != zlib.crc32(body):
        raise StampError("checksum is wrong: written in part, or damaged")
    fields = _BLOCK.unpack_from(data)
    try:
        kind = Kind(fields[2])
    except ValueError:
        raise StampError(f"unknown kind of write {fields[2]}") from None
    return Stamp(
        run=fields[1],
        kind=kind,
        host=fields[3],
        chain=fields[4],
        chains=fields[5],
        volume=fields[6],
        block=fields[8],
        counter=fields[9],
        txn=fields[10],
        issued_ns=fields[11],
        write_time=fields[12],
        seen=fields[13 : 13 + CHAINS_MAX],
        source=fields[29],
        target=fields[30],
        amount=fields[31],
        source_balance=fields[32],
        target_balance=fields[33],
    )


def encode_superblock(block: Superblock) -> bytes:
    """Return block 0 of a volume, ``block.block_size`` bytes."""
    head = _SUPER.pack(
        _SUPER_MAGIC,
        FORMAT_VERSION,
        block.volume,
        block.volumes,
        block.ledgers,
        block.chains,
        block.accounts,
        block.slots,
        block.block_size,
        0,
        block.run,
        block.seed,
        block.made_ns,
    )
    body = head.ljust(block.block_size - _CRC.size, b"\0")
    return body + _CRC.pack(zlib.crc32(body))


def decode_superblock_untrusted(data: bytes) -> Superblock | None:
    """Return the superblock at the start of ``data``, or None if there are zeros in its place.

    ``data`` is at least the largest block size, or the whole volume. Raises StampError for anything else.
    """
    if not any(data[: _SUPER.size]):
        return None
    if len(data) < _SUPER.size or data[: len(_SUPER_MAGIC)] != _SUPER_MAGIC:
        raise StampError("block 0 is not the bank's superblock")
    (_, version, volume, volumes, ledgers, chains, accounts, slots, size, _, run, seed, made) = _SUPER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise StampError(f"superblock has format version {version}; this hostsim knows {FORMAT_VERSION}")
    if size not in BLOCK_SIZES or len(data) < size:
        raise StampError(f"superblock names an impossible block size of {size} B")
    body = memoryview(data)[: size - _CRC.size]
    if _CRC.unpack_from(data, len(body))[0] != zlib.crc32(body):
        raise StampError("the superblock's checksum is wrong")
    if not (1 <= chains <= CHAINS_MAX and 0 < ledgers < volumes and volume < volumes and accounts >= 3 and slots >= 2):
        raise StampError("the superblock's figures contradict each other")
    return Superblock(run, seed, made, volume, volumes, ledgers, chains, accounts, slots, size)
