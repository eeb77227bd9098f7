"""How messages look on one connection, by what was negotiated: the three framings.

Owns: the layout of requests (compact or extended) and of every reply (simple, structured
or extended), and what a *token* is.
Never: sends anything, or decides what to answer.

A token is what a reply must repeat of its request: the cookie, and with extended headers
the offset behind it. It is opaque to everything else.

What a reader would get wrong: successes without data are simple replies also with
`STRUCTURED` (allowed, and fewer bytes), but never with `EXTENDED`.

Source: proto.md, "Request message", "Simple reply message", "Structured reply types";
branch extension-ext-header, "Extended reply chunk message".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

from controllerd.model.errors import RemoteCopyError
from controllerd.targets.nbd.contexts import Context
from controllerd.targets.nbd.errors import RequestRefused, errno_of, text_of
from controllerd.targets.nbd.wire import (
    CHUNK,
    DATA_CHUNK,
    DESCRIPTOR,
    DESCRIPTOR_EXT,
    ERROR_PAYLOAD,
    EXTENDED_CHUNK,
    EXTENDED_DATA_CHUNK,
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST,
    EXTENDED_REQUEST_MAGIC,
    HOLE_PAYLOAD,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STATUS_EXT,
    STRUCTURED_REPLY_MAGIC,
    U32,
    Chunk,
    Command,
    CommandFlag,
    chunk_head,
    request_head,
)

Answers = Iterable[tuple[Context, Sequence[tuple[int, int]]]]
"""(context, (length, state) runs) of a BLOCK_STATUS."""

HOLE_MIN: Final = 32 << 10
"""A shorter read is answered with zeros: to look for a hole would cost as much as it saves."""
_NEVER: Final = 1 << 64


class Framing:
    """What all framings have. The hot loop takes these values into locals, so they are plain attributes."""

    extended = False
    """Whether requests and replies have extended headers."""
    chunked = True
    """Whether a READ may be answered in several chunks, holes and errors in the middle included."""
    hole_min = HOLE_MIN
    """Shortest READ, in bytes, that is worth looking for a hole."""
    payload_flag = 0
    """The flag that a request with a payload must have, if there is one."""

    def __init__(self, request: struct.Struct, magic: int, data: struct.Struct, data_head: int) -> None:
        self.magic = magic
        self.request = request
        self.request_size = request.size
        self.unpack_request = request.unpack_from
        self.read_head = request_head(magic, Command.READ)
        self.write_head = request_head(magic, Command.WRITE, self.payload_flag)
        self.data_size = data.size
        """Bytes of header before the data of a READ."""
        self.data_head = data_head
        """Head of the last, or only, data of a READ."""
        self.pack_data: Any = data.pack_into
        """(buffer, position, head, token), and if `chunked` length + 8 and offset of the data."""

    def success(self, tokens: Sequence[bytes]) -> bytes:
        """Return one reply per token: success without data."""
        raise NotImplementedError

    def failure(self, token: bytes, error: RemoteCopyError | RequestRefused) -> bytes:
        """Return the reply that tells a host of ``error``, with its text where the framing can carry one."""
        raise NotImplementedError

    def empty_read(self, token: bytes) -> bytes:
        """Return the reply to a READ of no bytes."""
        raise NotImplementedError


class _Simple(Framing):
    chunked = False
    hole_min = _NEVER

    _HEAD_OK: Final = SIMPLE_REPLY_MAGIC << 32
    _OK: Final = _HEAD_OK.to_bytes(8, "big")

    def __init__(self) -> None:
        super().__init__(REQUEST, REQUEST_MAGIC, SIMPLE_REPLY, self._HEAD_OK)

    def success(self, tokens: Sequence[bytes]) -> bytes:
        return self._OK + self._OK.join(tokens)

    def failure(self, token: bytes, error: RemoteCopyError | RequestRefused) -> bytes:
        return SIMPLE_REPLY.pack(self._HEAD_OK | errno_of(error), token)

    def empty_read(self, token: bytes) -> bytes:
        return self.success((token,))


class ChunkFraming(Framing):
    """Replies in chunks: a header of `_chunk`'s layout, and a payload of ``length`` bytes."""

    def __init__(
        self,
        request: struct.Struct,
        request_magic: int,
        chunk: struct.Struct,
        data: struct.Struct,
        magic: int,
        status: Chunk,
    ) -> None:
        super().__init__(request, request_magic, data, chunk_head(magic, Chunk.OFFSET_DATA, done=True))
        self.data_more_head = chunk_head(magic, Chunk.OFFSET_DATA, done=False)
        self._chunk = chunk
        self._error = chunk_head(magic, Chunk.ERROR, done=True)
        self._none = chunk_head(magic, Chunk.NONE, done=True)
        self._holes = [chunk_head(magic, Chunk.OFFSET_HOLE, done=done) for done in (False, True)]
        self._statuses = [chunk_head(magic, status, done=done) for done in (False, True)]

    def failure(self, token: bytes, error: RemoteCopyError | RequestRefused) -> bytes:
        text = text_of(error)
        header = self._chunk.pack(self._error, token, ERROR_PAYLOAD.size + len(text))
        return header + ERROR_PAYLOAD.pack(errno_of(error), len(text)) + text

    def empty_read(self, token: bytes) -> bytes:
        return self._chunk.pack(self._none, token, 0)

    def hole(self, token: bytes, offset: int, length: int, *, done: bool) -> bytes:
        """Return a chunk that says: ``length`` bytes from byte ``offset`` read as zeros."""
        return self._chunk.pack(self._holes[done], token, HOLE_PAYLOAD.size) + HOLE_PAYLOAD.pack(offset, length)

    def block_status(self, token: bytes, answers: Answers) -> bytes:
        """Return one chunk of descriptors per context, the last one marked as such."""
        payloads = [self._status(context, states) for context, states in answers]
        last = len(payloads) - 1
        return b"".join(
            self._chunk.pack(self._statuses[index == last], token, len(payload)) + payload
            for index, payload in enumerate(payloads)
        )

    def _status(self, context: Context, states: Sequence[tuple[int, int]]) -> bytes:
        raise NotImplementedError


class _Structured(ChunkFraming):
    def __init__(self) -> None:
        super().__init__(REQUEST, REQUEST_MAGIC, CHUNK, DATA_CHUNK, STRUCTURED_REPLY_MAGIC, Chunk.BLOCK_STATUS)

    def success(self, tokens: Sequence[bytes]) -> bytes:
        return SIMPLE.success(tokens)

    def _status(self, context: Context, states: Sequence[tuple[int, int]]) -> bytes:
        return U32.pack(context.number) + b"".join(DESCRIPTOR.pack(length, state) for length, state in states)


class _Extended(ChunkFraming):
    extended = True
    payload_flag = int(CommandFlag.PAYLOAD_LEN)
    _OK: Final = chunk_head(EXTENDED_REPLY_MAGIC, Chunk.NONE, done=True).to_bytes(8, "big")
    _NO_PAYLOAD: Final = bytes(8)
    _BETWEEN: Final = _NO_PAYLOAD + _OK

    def __init__(self) -> None:
        super().__init__(
            EXTENDED_REQUEST,
            EXTENDED_REQUEST_MAGIC,
            EXTENDED_CHUNK,
            EXTENDED_DATA_CHUNK,
            EXTENDED_REPLY_MAGIC,
            Chunk.BLOCK_STATUS_EXT,
        )

    def success(self, tokens: Sequence[bytes]) -> bytes:
        return self._OK + self._BETWEEN.join(tokens) + self._NO_PAYLOAD

    def _status(self, context: Context, states: Sequence[tuple[int, int]]) -> bytes:
        descriptors = b"".join(DESCRIPTOR_EXT.pack(length, state) for length, state in states)
        return STATUS_EXT.pack(context.number, len(states)) + descriptors


SIMPLE: Final = _Simple()
STRUCTURED: Final = _Structured()
EXTENDED: Final = _Extended()
