"""The client's side of NBD for tests: requests as bytes, replies taken apart.

Owns: a strict reader of replies: anything the protocol does not allow is an assertion.
Never: shares a layout with the server's wire.py; both are written from the protocol document.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
EVERY = (READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
ERR = 1 << 31
UNSUP, POLICY, INVALID, PLATFORM, TLS_REQD, UNKNOWN, SHUTDOWN, BLOCK_SIZE_REQD, TOO_BIG, EXT_HEADER_REQD = (
    ERR + n for n in range(1, 11)
)
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108


def option(number: int, data: bytes = b"") -> bytes:
    """Return an option with its data."""
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def string(text: str | bytes) -> bytes:
    """Return a string with its length before it."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(data)) + data


def go(name: str, *wanted: int, number: int = GO) -> bytes:
    """Return GO (or INFO) for an export."""
    return option(number, string(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted))


def meta(number: int, name: str, *queries: str) -> bytes:
    """Return LIST_META_CONTEXT or SET_META_CONTEXT."""
    return option(number, string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries)))


def option_replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """Take option replies apart: (option, type, data)."""
    replies = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x3E889045565A9
        assert len(data) >= 20 + length
        replies.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return replies


def request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> bytes:
    """Return a request; the length is that of ``data`` if there is any."""
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, len(data) or length) + data


def extended_request(
    command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes | None = None
) -> bytes:
    """Return an extended request; ``data`` (for a WRITE: also none) is its payload."""
    if command == WRITE and data is None:
        data = bytes(length)
    if data is not None:
        flags |= PAYLOAD_LEN
        length = len(data)
    return struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length) + (data or b"")


@dataclass
class Reply:
    """One complete reply. ``data`` by offset; ``holes`` are (offset, length); ``status`` by context number."""

    cookie: int
    error: int = 0
    text: str = ""
    data: dict[int, bytes] = field(default_factory=dict)
    holes: list[tuple[int, int]] = field(default_factory=list)
    status: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    chunks: int = 0

    def content(self) -> bytes:
        """Return the data of a READ in order."""
        data = {**self.data, **{offset: bytes(length) for offset, length in self.holes}}
        return b"".join(data for _, data in sorted(data.items()))


class Replies:
    """Reads a stream of replies. ``reads`` gives the length of a READ by cookie, where simple replies need it.

    With extended headers, ``offsets`` gives the offset of requests by cookie that replies have to repeat.
    """

    def __init__(self, *, structured: bool, extended: bool = False) -> None:
        self.structured = structured
        self.extended = extended
        self.offsets: dict[int, int] = {}
        self.reads: dict[int, int] = {}
        self.done: list[Reply] = []
        self._open: dict[int, Reply] = {}
        self._data = b""

    def feed(self, data: bytes) -> None:
        """Take bytes from the server."""
        self._data += data
        while (size := self._one(self._data)) > 0:
            self._data = self._data[size:]

    @property
    def rest(self) -> bytes:
        """What does not make up a reply."""
        return self._data

    def take(self) -> dict[int, Reply]:
        """Return the complete replies by cookie, each once."""
        done, self.done = self.done, []
        assert len({reply.cookie for reply in done}) == len(done), "a request was answered twice"
        return {reply.cookie: reply for reply in done}

    def _one(self, data: bytes) -> int:
        if len(data) < 16:
            return 0
        (magic,) = struct.unpack_from(">I", data)
        if self.extended:
            assert magic == 0x6E8A278C, f"not an extended reply: {data[:32]!r}"
            return self._chunk(data)
        if magic == 0x67446698:
            error, cookie = struct.unpack_from(">IQ", data, 4)
            assert not (self.structured and cookie in self.reads), "simple reply to a READ in spite of negotiation"
            length = 0 if error else self.reads.get(cookie, 0)
            if len(data) < 16 + length:
                return 0
            reply = Reply(cookie, error)
            if length:
                reply.data[0] = data[16 : 16 + length]
            self.done.append(reply)
            return 16 + length
        assert magic == 0x668E33EF, f"not a reply: {data[:16]!r}"
        assert self.structured
        return self._chunk(data)

    def _chunk(self, data: bytes) -> int:
        header = 32 if self.extended else 20
        if len(data) < header:
            return 0
        if self.extended:
            flags, kind, cookie, about, length = struct.unpack_from(">HHQQQ", data, 4)
            assert about == self.offsets.get(cookie, about), "reply does not repeat its request's offset"
        else:
            flags, kind, cookie, length = struct.unpack_from(">HHQI", data, 4)
        if len(data) < header + length:
            return 0
        payload = data[header : header + length]
        reply = self._open.setdefault(cookie, Reply(cookie))
        reply.chunks += 1
        assert flags in (0, 1)
        if kind == 0:
            assert not payload
            assert flags == 1
        elif kind == 1:
            assert length > 8
            (offset,) = struct.unpack_from(">Q", payload)
            assert offset not in reply.data
            reply.data[offset] = payload[8:]
        elif kind == 2:
            assert length == 12
            offset, size = struct.unpack(">QI", payload)
            assert size
            reply.holes.append((offset, size))
        elif kind == 6:
            assert self.extended
            context, count = struct.unpack_from(">II", payload)
            assert context not in reply.status
            assert length == 8 + 16 * count > 8
            reply.status[context] = list(struct.iter_unpack(">QQ", payload[8:]))
        elif kind == 5:
            assert not self.extended
            (context,) = struct.unpack_from(">I", payload)
            assert context not in reply.status
            reply.status[context] = [
                (int(length), int(state)) for length, state in struct.iter_unpack(">II", payload[4:])
            ]
        else:
            assert kind == 0x8001
            reply.error, size = struct.unpack_from(">IH", payload)
            assert reply.error
            assert len(payload) == 6 + size
            reply.text = payload[6:].decode()
        if flags:
            self.done.append(self._open.pop(cookie))
        return int(header + length)
