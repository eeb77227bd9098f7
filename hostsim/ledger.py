"""What a volume may show, by what a host wrote to it and saw acknowledged. Pure; the measure of invariant I9.

Owns: the stamped block of `hostsim write-verify`, and for every block which writes it may show. Never: input or output.

A block may show its last acknowledged write, or a later one whose outcome is unknown (the connection broke before the
answer). A read decides that: a write that was seen has happened, so nothing older may be read afterwards, and one that
was not seen has not happened and must not come to light later, say in the recovery from the next crash. Writes are
counted over the whole volume from 1; 0 stands for the zeros at the start. The writer never has two commands in flight
on one block.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from dataclasses import dataclass

# A block, big-endian; `crc32` is zlib's, of all before it:
#  0       8     16      24        32           size-4
#  +-------+-----+-------+---------+-- - - - --+-------+
#  | magic | run | block | counter | filler    | crc32 |
#  +-------+-----+-------+---------+-- - - - --+-------+
_STAMP = struct.Struct(">8sQQQ")
_CRC = struct.Struct(">I")
_MAGIC = b"RCVERIF\x01"
assert _STAMP.size == 32


class WrongBlock(ValueError):
    """A block that is neither zeros nor one this host wrote; the text says what is wrong with it."""


def encode_block(run: int, block: int, counter: int, size: int) -> bytes:
    """Return what write ``counter`` puts into a block."""
    head = _STAMP.pack(_MAGIC, run, block, counter)
    body = (head * (size // len(head) + 1))[: size - _CRC.size]
    return body + _CRC.pack(zlib.crc32(body))


def decode_block_untrusted(data: bytes, run: int, block: int) -> int:
    """Return which write a block shows, 0 for zeros. Raises WrongBlock."""
    magic, found_run, found_block, counter = _STAMP.unpack_from(data)
    if magic != _MAGIC:
        if not any(data):
            return 0
        raise WrongBlock("is neither zeros nor a block of this host")
    if _CRC.unpack_from(data, len(data) - _CRC.size)[0] != zlib.crc32(memoryview(data)[: -_CRC.size]):
        raise WrongBlock("has a wrong checksum: written in part, or damaged")
    if found_run != run or found_block != block:
        raise WrongBlock(f"is a block of run {found_run:016x} written to block {found_block}")
    return int(counter)


@dataclass(frozen=True, slots=True)
class Issued:
    """A write of ``count`` blocks from ``block`` on; ``zero``: it wrote zeros."""

    counter: int
    block: int
    count: int
    zero: bool


class Ledger:
    """The state of every block of a volume as its only writer knows it."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.last_counter = 0
        self.acknowledged = 0
        self._settled = array("Q", bytes(8 * blocks))
        self._settled_zero = bytearray(b"\1" * blocks)
        self._in_flight: dict[int, Issued] = {}
        self._unknown: dict[int, list[Issued]] = {}

    def issue(self, write: Issued) -> None:
        """Note a write that is about to be sent. Its counter is higher than all before."""
        self.last_counter = write.counter
        self._in_flight[write.counter] = write

    def acknowledge(self, counter: int) -> None:
        """Note that a write in flight was acknowledged: from now on nothing older may be read."""
        write = self._in_flight.pop(counter)
        self.acknowledged += 1
        for block in range(write.block, write.block + write.count):
            self._settle(block, write)

    def lose(self, counter: int) -> None:
        """Note that a write in flight got no answer, or an error: it may have happened, on each block by itself."""
        write = self._in_flight.pop(counter)
        for block in range(write.block, write.block + write.count):
            self._unknown.setdefault(block, []).append(write)

    def lose_all(self) -> None:
        """Note that no write in flight will be answered any more."""
        for counter in list(self._in_flight):
            self.lose(counter)

    def seen(self, block: int, counter: int) -> str:
        """Judge a read block, of which no write is in flight. Returns what is wrong, "" if nothing is.

        ``counter``: the write it shows, 0 for zeros. Unknown outcomes are decided by it.
        """
        for write in reversed(self._unknown.get(block, ())):
            if counter == (0 if write.zero else write.counter):
                self._settle(block, write)
                return ""
        settled = self._settled[block]
        if counter == (0 if self._settled_zero[block] else settled):
            self._unknown.pop(block, None)
            return ""
        shows = f"shows write {counter}" if counter else "shows zeros"
        what = "zeros of write" if self._settled_zero[block] else "write"
        unknown = "".join(f" or {write.counter}" for write in self._unknown.get(block, ()))
        return f"{shows}, and must show {what} {settled}{unknown}"

    def unsettled(self, block: int) -> bool:
        """Return True if a write to the block has an unknown outcome."""
        return block in self._unknown

    def _settle(self, block: int, write: Issued) -> None:
        self._settled[block] = write.counter
        self._settled_zero[block] = write.zero
        self._unknown.pop(block, None)
