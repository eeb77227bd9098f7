"""Transfer frames: what is sent is found again however the stream is cut, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.replication.frames import (
    CHUNK_BYTES,
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

SMALL = [kind for kind in FrameType if kind is not FrameType.DATA]

messages = st.builds(
    lambda kind, payload, first, flags: (encode_frame(kind, payload, first=first, flags=flags), (kind, payload, first)),
    st.sampled_from(SMALL),
    st.binary(max_size=600),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**16 - 1),
)
data_frames = st.builds(
    lambda payload, first, count: (
        encode_data_header(7, first, count, len(payload)) + payload,
        (FrameType.DATA, payload, first),
    ),
    st.binary(max_size=3000),
    st.integers(1, 2**63),
    st.integers(1, 1000),
)


def feed(reader: FrameReader, stream: bytes, cuts: list[int]) -> list[Frame]:
    """Put ``stream`` into the reader in pieces of the given sizes, again and again."""
    found: list[Frame] = []
    position = turn = 0
    while position < len(stream):
        buffer = reader.buffer
        size = min(cuts[turn % len(cuts)], len(buffer), len(stream) - position)
        buffer[:size] = stream[position : position + size]
        found += reader.received(size)
        position += size
        turn += 1
    return found


def trusted() -> FrameReader:
    reader = FrameReader(BufferPool(1 << 20))
    reader.trust()
    return reader


@given(st.lists(st.one_of(messages, data_frames), max_size=12), st.lists(st.integers(1, 900), min_size=1, max_size=5))
def test_reader_finds_every_frame_however_the_stream_is_cut(
    frames: list[tuple[bytes, tuple[FrameType, bytes, int]]], cuts: list[int]
) -> None:
    found = feed(trusted(), b"".join(data for data, _ in frames), cuts)
    assert [(frame.type, bytes(frame.payload), frame.first) for frame in found] == [facts for _, facts in frames]


@given(messages, st.data())
def test_reader_refuses_a_message_with_any_flipped_bit(
    message: tuple[bytes, tuple[FrameType, bytes, int]], data: st.DataObject
) -> None:
    stream = bytearray(message[0])
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    # A longer length only makes the reader wait for more, never accept.
    try:
        assert feed(trusted(), bytes(stream), [len(stream)]) == []
    except FrameError:
        pass


@given(st.binary(min_size=HEADER_SIZE, max_size=200))
def test_reader_answers_garbage_with_its_own_error_and_stays_in_error(garbage: bytes) -> None:
    reader = trusted()
    with pytest.raises(FrameError):
        feed(reader, garbage, [50])
    with pytest.raises(FrameError):
        reader.received(0)


@pytest.mark.parametrize("bit", range(8 * HEADER_SIZE))
def test_data_header_with_a_flipped_bit_is_refused(bit: int) -> None:
    header = bytearray(encode_data_header(1, 2, 3, 4000))
    header[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        # The payload follows because the flip may have made a message of it, whose checksum covers both.
        feed(trusted(), bytes(header) + bytes(5000), [HEADER_SIZE, 5000])


@pytest.mark.parametrize("kind", [FrameType.DATA, FrameType.PULL, FrameType.ACK, FrameType.FENCE, FrameType.NOTICE])
def test_reader_accepts_only_the_handshake_before_the_peer_is_trusted(kind: FrameType) -> None:
    frame = encode_data_header(1, 1, 1, 10) if kind is FrameType.DATA else encode_frame(kind, b"{}")
    with pytest.raises(FrameError, match="not allowed"):
        feed(FrameReader(BufferPool(1 << 20)), frame, [len(frame)])


def test_reader_refuses_an_oversize_length_before_it_allocates() -> None:
    header = encode_data_header(1, 1, 1, MAX_DATA_PAYLOAD + 1)
    with pytest.raises(FrameError, match="over the limit"):
        feed(trusted(), header, [len(header)])
    untrusted = FrameReader(BufferPool(1 << 20))
    assert len(untrusted.buffer) <= 4 * MAX_MESSAGE
    frame = bytearray(encode_frame(FrameType.HELLO, bytes(100)))
    frame[8:12] = (MAX_MESSAGE + 1).to_bytes(4, "little")
    with pytest.raises(FrameError, match="over the limit"):
        feed(untrusted, bytes(frame), [len(frame)])


def test_memory_of_a_payload_is_never_written_again() -> None:
    reader = trusted()
    kept: list[tuple[memoryview, bytes]] = []
    for number in range(200):
        payload = bytes([number]) * (5000 + 97 * number)
        stream = encode_data_header(1, 1, 1, len(payload)) + payload
        kept += [(frame.payload, payload) for frame in feed(reader, stream, [4000, 70000])]
    assert sum(len(payload) for _, payload in kept) > 4 * CHUNK_BYTES
    assert all(view == payload for view, payload in kept)


def test_largest_data_frame_passes() -> None:
    payload = bytes(MAX_DATA_PAYLOAD)
    found = feed(trusted(), encode_data_header(1, 1, 1, len(payload)) + payload, [1 << 20])
    assert [len(frame.payload) for frame in found] == [MAX_DATA_PAYLOAD]
