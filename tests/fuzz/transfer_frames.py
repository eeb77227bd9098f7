"""Any frames, whole or broken, in any split: the same frames are found as in one piece, in bounded memory.

What is found is decoded: a message can be sent on as it came, and a batch of records says what the plain decoder says.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from crc32c import crc32c

from controllerd.model.errors import Corrupt
from controllerd.model.records import MAX_DATA, Kind, encode_header
from controllerd.replication import messages
from controllerd.replication.batch import parse_batch_untrusted
from controllerd.replication.frames import (
    HEADER,
    HEADER_SIZE,
    MAX_DATA_PAYLOAD,
    MAX_MESSAGE,
    Frame,
    FrameError,
    FrameReader,
    FrameType,
    encode_data_header,
    encode_frame,
)
from controllerd.storage.buffers import BufferPool
from tests.fuzz.source import Source
from tests.records import iterate_untrusted

_GENERATION: Final = 3
_JSON: Final = {
    int(kind.frame): kind
    for kind in (
        messages.Hello, messages.Pull, messages.Accept, messages.Refuse, messages.Fence, messages.Fenced,
        messages.Farewell, messages.Notice,
    )
}  # fmt: skip
_KINDS: Final = [int(kind) for kind in FrameType if kind is not FrameType.DATA]
_TEXTS: Final = ("", "g1", "fail", "x" * 512, "\N{GRINNING FACE}" * 512, "\0" * 512, "\ud800", '"\\\n', "é" * 513)
_NUMBERS: Final = (0, 1, 5, (1 << 64) - 1, 1 << 63)
_LENGTHS: Final = (0, 32, MAX_MESSAGE, MAX_MESSAGE + 1, 300_000, MAX_DATA_PAYLOAD, MAX_DATA_PAYLOAD + 1, (1 << 32) - 1)
_UNTRUSTED_MAX: Final = 4 * MAX_MESSAGE
_MEMORY_MAX: Final = MAX_DATA_PAYLOAD + (512 << 10)

_Found = tuple[list[Frame], str]


def run(data: bytes) -> None:
    """Read a stream that ``data`` decides."""
    source = Source(data)
    trusted = source.number(1) % 4 != 3
    stream = b"".join(frame(source) for _ in range(source.number(1) % 12)) + source.take(source.number(1) % 64)
    found, error = _read([stream], trusted)
    pieces, error_in_pieces = _read(list(source.pieces(stream)), trusted)
    assert error == error_in_pieces
    # What comes before a broken frame may be lost with it.
    assert pieces[: len(found)] == found if error else pieces == found
    for each in pieces:
        decode(each)


def frame(source: Source) -> bytes:
    """Return a frame of any kind, or something like one."""
    match source.number(1) % 6:
        case 0:
            return _message(source)
        case 1:
            return encode_frame(FrameType(source.pick(_KINDS)), source.take(source.number(1)), flags=source.number(1))
        case 2:
            raw = b"".join(_record(source, number) for number in range(1, 1 + source.number(1) % 5))
            count = source.pick((raw.count(b"RCRJ"), 1, 0, (1 << 32) - 1))
            return encode_data_header(_GENERATION, source.pick((1, 1, 1, 2, (1 << 64) - 1)), count, len(raw)) + raw
        case 3:
            whole = bytearray(_message(source))
            whole[source.number(2) % len(whole)] ^= 1 << source.number(1) % 8
            return bytes(whole)
        case 4:
            length = source.pick(_LENGTHS)
            return encode_data_header(_GENERATION, 1, 1, length) + bytes(min(length, source.pick((0, 300_000))))
        case _:
            # A length that is not that of the payload.
            header = bytearray(encode_frame(FrameType(source.pick(_KINDS)), b"{}"))
            header[8:12] = source.pick(_LENGTHS).to_bytes(4, "little")
            return bytes(header)


def _message(source: Source) -> bytes:
    a, b, c, d, e, f = (source.pick(_NUMBERS) for _ in range(6))
    match source.pick(_KINDS):
        case FrameType.ACK:
            return messages.Ack(a, b, c, d, e, bool(source.number(1) & 1)).encode()
        case FrameType.HEARTBEAT:
            return messages.Heartbeat(a, b, c, d, e, f, c, b, source.pick(_TEXTS)).encode()
        case number:
            kind = _JSON.get(number, messages.Notice)
            texts = [field.name for field in dataclasses.fields(kind) if field.type == "str"]
            values: dict[str, Any] = {field.name: source.pick(_NUMBERS) for field in dataclasses.fields(kind)}
            values |= dict.fromkeys(texts, "text") | {source.pick(texts): source.pick(_TEXTS)}
            made: Any = kind(**values)
            whole: bytes = made.encode()
            return whole


def _record(source: Source, number: int) -> bytes:
    kind = source.pick((*(int(kind) for kind in Kind), 0, 99))
    data = source.take(source.number(1)) if kind == Kind.WRITE else b""
    return (
        encode_header(
            kind,
            sequence=source.pick((number, number, number, number + 1, 0)),
            time=source.pick((number, number, 1, (1 << 64) - 1)),
            generation=source.pick((_GENERATION, _GENERATION, _GENERATION, 4)),
            incarnation=source.number(1),
            volume=source.number(4),
            offset=source.pick(_NUMBERS),
            length=source.pick((len(data), len(data), 1 << 20, MAX_DATA + 1, 1 << 30, (1 << 32) - 1)),
            data_crc=crc32c(data),
        )
        + data
    )


def _read(pieces: list[bytes], trusted: bool) -> _Found:
    chunks = BufferPool(1 << 20)
    reader = FrameReader(chunks)
    if trusted:
        reader.trust()
    frames: list[Frame] = []
    for piece in pieces:
        while piece:
            buffer = reader.buffer
            assert buffer, "there is always room"
            size = min(len(buffer), len(piece))
            buffer[:size], piece = piece[:size], piece[size:]
            try:
                frames += reader.received(size)
            except FrameError as error:
                return frames, str(error)
            assert len(reader._chunk) <= (_MEMORY_MAX if trusted else _UNTRUSTED_MAX)
            assert trusted or not chunks.made
    return frames, ""


def decode(found: Frame) -> None:
    """Decode what a frame carries, or see it refused as documented."""
    if found.type == FrameType.DATA:
        _decode_batch(found)
        return
    try:
        message = _decode(found.type, found.payload, found.flags)
    except FrameError:
        return
    if message is not None:
        whole = message.encode()
        flags = HEADER.unpack_from(whole)[3]
        assert _decode(found.type, memoryview(whole)[HEADER_SIZE:], flags) == message


def _decode(kind: int, payload: memoryview, flags: int) -> Any:
    if kind == FrameType.ACK:
        return messages.decode_ack_untrusted(payload, flags)
    if kind == FrameType.HEARTBEAT:
        return messages.decode_heartbeat_untrusted(payload)
    return _JSON[kind].decode_untrusted(payload) if kind in _JSON else None


def _decode_batch(found: Frame) -> None:
    try:
        batch = parse_batch_untrusted(found.payload, found.first, found.records, found.generation)
    except Corrupt:
        return
    plain = [record for _, record in iterate_untrusted(found.payload)]
    assert (batch.first, batch.last) == (found.first, found.first + found.records - 1)
    assert [record.sequence for record in plain] == list(range(batch.first, batch.last + 1))
    for entry, record in zip(batch.entries, plain, strict=True):
        assert (entry.kind, entry.volume, entry.offset, entry.length) == (
            record.kind, record.volume, record.offset, record.length,
        )  # fmt: skip
        assert (entry.data or b"") == record.data
