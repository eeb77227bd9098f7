"""Transfer frames: the bytes that two controllers exchange on the transfer path.

Owns: the frame header, the types, the size limits, and finding frames in a byte stream.
Never: reads sockets, knows of pairs, or judges what a message means (messages.py has the payloads).

A connection carries frames back to back, in both directions. Multi-byte fields are
little-endian. The secondary dials the primary and asks (pull, RC ¶48):

    dialler (secondary)                     acceptor (primary)
    HELLO    ------------------------------>
             <------------------------------ HELLO
    PROOF    ------------------------------>              (shared key, auth.py)
             <------------------------------ PROOF
    PULL     ------------------------------>              (or FENCE -> FENCED, FAREWELL -> FAREWELL)
             <------------------------------ ACCEPT or REFUSE
             <------------------------------ DATA, HEARTBEAT, SYNC, NOTICE
    ACK, NOTICE, HEARTBEAT ---------------->

What a reader would get wrong: the payload of DATA has no checksum of its own. It is
journal records (model/records.py), each of which has one over header and data that
also binds it to group generation, place, number and time; checking twice would cost
a third of the receiver's time. Every other payload is covered by the frame's.

Source: RC ¶36-38, ¶48; spec §4; architecture §6.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from crc32c import crc32c

from controllerd.model.records import HEADER_SIZE as RECORD_HEADER_SIZE
from controllerd.model.records import MAX_DATA
from controllerd.storage.buffers import BufferPool

MAGIC: Final = 0x58544352  # "RCTX" in stream order
VERSION: Final = 1

# Frame header, 32 bytes, little-endian
#  0       4         5      6       8        12           16      24      28    32
#  +-------+---------+------+-------+--------+------------+-------+-------+-----+
#  | magic | version | type | flags | length | generation | first | count | crc |
#  +-------+---------+------+-------+--------+------------+-------+-------+-----+
# length = payload bytes; generation, first (sequence number) and count (records)
# describe DATA; SYNC uses first; elsewhere they are 0. crc = CRC-32C of bytes 0..27,
# continued over the payload unless the type is DATA.
HEADER: Final = struct.Struct("<IBBHIIQII")
HEADER_BODY: Final = struct.Struct("<IBBHIIQI")
HEADER_SIZE: Final = HEADER.size
_CRC: Final = struct.Struct("<I")
assert HEADER_SIZE == 32
assert HEADER_BODY.size + _CRC.size == HEADER_SIZE

MAX_MESSAGE: Final = 4096
"""Most payload bytes of a frame that is not DATA."""
MAX_DATA_PAYLOAD: Final = (1 << 20) + MAX_DATA + RECORD_HEADER_SIZE
"""Most payload bytes of DATA: a journal read of 1 MiB may end with one record that goes beyond it."""
CHUNK_BYTES: Final = 512 << 10
_CHUNK_STEP: Final = 256 << 10


class FrameType(enum.IntEnum):
    """What a frame is."""

    HELLO = 1
    PROOF = 2
    PULL = 3
    ACCEPT = 4
    REFUSE = 5
    DATA = 6
    ACK = 7
    HEARTBEAT = 8
    SYNC = 9
    FENCE = 10
    FENCED = 11
    NOTICE = 12
    FAREWELL = 13


_DATA: Final = int(FrameType.DATA)
_LIMITS: Final = {int(kind): MAX_MESSAGE for kind in FrameType} | {_DATA: MAX_DATA_PAYLOAD}
_BEFORE_PROOF: Final = {int(FrameType.HELLO): MAX_MESSAGE, int(FrameType.PROOF): 64, int(FrameType.REFUSE): MAX_MESSAGE}


class FrameFlag(enum.IntFlag):
    """Frame flags."""

    TICK_WANTED = 1
    """ACK: records of other groups wait for a later write time of this group (spec §4.3)."""
    LAST_WORD = 2
    """HEARTBEAT: the pair is suspended; it says how far the primary was, and nothing of its present (I14)."""


class FrameError(ValueError):
    """Bytes that are not a valid frame: the connection cannot be used any further."""


class Frame(NamedTuple):
    """One frame; ``payload`` is a view of the memory it was received into, which is never used again."""

    type: int
    flags: int
    generation: int
    first: int
    records: int
    payload: memoryview


def encode_frame(kind: FrameType, payload: bytes = b"", *, first: int = 0, flags: int = 0) -> bytes:
    """Return a whole frame of any type but DATA."""
    assert kind is not FrameType.DATA
    assert len(payload) <= MAX_MESSAGE
    body = HEADER_BODY.pack(MAGIC, VERSION, kind, flags, len(payload), 0, first, 0)
    return body + _CRC.pack(crc32c(payload, crc32c(body))) + payload


def encode_data_header(generation: int, first: int, count: int, length: int) -> bytes:
    """Return the header of a DATA frame whose payload, ``length`` bytes of records, is sent after it."""
    body = HEADER_BODY.pack(MAGIC, VERSION, _DATA, 0, length, generation, first, count)
    return body + _CRC.pack(crc32c(body))


class FrameReader:
    """Finds frames in a byte stream: fill `buffer`, call `received`, take the frames.

    Memory is handed out in chunks of ``chunks`` that are filled once: payloads of DATA are
    kept by caches long after. Until `trust` is called only the small frames of the handshake are
    accepted, so an unauthenticated peer cannot make it allocate anything. After an error
    it stays in error.
    """

    __slots__ = ("_chunk", "_chunks", "_end", "_error", "_limits", "_start", "_view")

    def __init__(self, chunks: BufferPool) -> None:
        self._limits = _BEFORE_PROOF
        self._chunks = chunks
        self._chunk = bytearray(2 * (MAX_MESSAGE + HEADER_SIZE))
        self._view = memoryview(self._chunk)
        self._start = 0
        self._end = 0
        self._error: FrameError | None = None

    def trust(self) -> None:
        """The peer has proved who it is: accept every type."""
        self._limits = _LIMITS

    @property
    def damaged(self) -> bool:
        """Whether what came is not made of valid frames."""
        return self._error is not None

    @property
    def buffer(self) -> memoryview:
        """Free memory to receive into; never empty."""
        return self._view[self._end :]

    def received(self, size: int) -> list[Frame]:
        """``size`` bytes were put at the start of `buffer`; return the frames that are complete now.

        Raises:
            FrameError: the stream is not made of valid frames; nothing more can be read from it.
        """
        if self._error is not None:
            raise self._error
        self._end += size
        frames: list[Frame] = []
        try:
            self._split_untrusted(frames.append)
        except FrameError as error:
            self._error = error
            raise
        return frames

    def _split_untrusted(self, emit: Callable[[Frame], object]) -> None:
        view, position, end = self._view, self._start, self._end
        unpack, limits = HEADER.unpack_from, self._limits
        wanted = HEADER_SIZE
        while end - position >= HEADER_SIZE:
            magic, version, kind, flags, length, generation, first, count, crc = unpack(view, position)
            if magic != MAGIC or version != VERSION:
                raise FrameError(f"no transfer frame: magic {magic:#x} version {version}")
            limit = limits.get(kind)
            if limit is None:
                raise FrameError(f"frame type {kind} is not known or not allowed now")
            if length > limit:
                raise FrameError(f"frame of type {kind} with {length} bytes is over the limit of {limit}")
            start = position + HEADER_SIZE
            actual = crc32c(view[position : start - 4])
            if kind == _DATA and actual != crc:
                raise FrameError("frame header checksum is wrong")
            if end - start < length:
                wanted = HEADER_SIZE + length
                break
            payload = view[start : start + length]
            if kind != _DATA and crc32c(payload, actual) != crc:
                raise FrameError(f"checksum of frame type {kind} is wrong")
            emit(Frame(kind, flags, generation, first, count, payload))
            position = start + length
        self._start = position
        if len(view) - position < wanted or end == len(view):
            self._begin_chunk(wanted)

    def _begin_chunk(self, wanted: int) -> None:
        """Go on in fresh memory that has room for ``wanted`` bytes from the start of the unfinished frame.

        A long frame gets a chunk of about its size: what caches keep of it keeps little else alive, and little
        of the next one is moved. There are few sizes, so that memory used before is found again.
        """
        trusted = self._limits is _LIMITS
        usual = CHUNK_BYTES if trusted else 2 * MAX_MESSAGE
        size = -(-wanted // _CHUNK_STEP) * _CHUNK_STEP if 2 * wanted > usual else usual
        chunk = self._chunks.take(size) if trusted else bytearray(size)
        view = memoryview(chunk)
        rest = self._end - self._start
        view[:rest] = self._view[self._start : self._end]
        self.close()
        self._chunk, self._view, self._start, self._end = chunk, view, 0, rest

    def close(self) -> None:
        """Give the memory back; payloads that were handed out stay valid. Nothing can be received any more."""
        self._view = memoryview(b"")
        retired, self._chunk = self._chunk, bytearray()
        if len(retired) >= CHUNK_BYTES >> 2:
            self._chunks.retire(retired)
