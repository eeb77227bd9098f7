"""Journal records: what was encoded comes back, and no damage passes for a record (I10, F15)."""

from __future__ import annotations

from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.records import (
    HEADER,
    HEADER_CRC,
    HEADER_SIZE,
    MAX_DATA,
    MAX_RANGE,
    Kind,
    Record,
    RecordError,
    decode_place_untrusted,
    decode_untrusted,
    encode_header,
)
from tests.records import iterate_untrusted

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
FIELDS: dict[str, Any] = {
    "sequence": U64, "time": U64, "generation": U32, "incarnation": U32, "durable": U64, "flags": U16, "volume": U32,
    "offset": U64, "marker": U64, "origin": U64,
}  # fmt: skip
DATA = bytes(range(97))


def raw(kind: Kind, data: bytes = b"", **fields: Any) -> bytes:
    length = len(data) if kind is Kind.WRITE else 4096 if kind in (Kind.ZEROES, Kind.TRIM) else 0
    facts = {"sequence": 7, "time": 9, "generation": 3, "incarnation": 2, "length": length, **fields}
    return encode_header(kind, data_crc=crc32c(data) if data else 0, **facts) + data


def decodes(buffer: bytes) -> Record | None:
    try:
        return decode_untrusted(memoryview(buffer))
    except RecordError:
        return None


@given(st.sampled_from(Kind), st.fixed_dictionaries(FIELDS), st.binary(min_size=1, max_size=300))
def test_what_was_encoded_comes_back(kind: Kind, fields: dict[str, int], data: bytes) -> None:
    content = data if kind is Kind.WRITE else b""
    buffer = raw(kind, content, **fields)
    record = decode_untrusted(memoryview(b"before" + buffer + b"behind"), 6)
    assert {name: getattr(record, name) for name in fields} == fields
    assert (record.kind, bytes(record.data), record.size) == (kind, content, len(buffer))


@given(st.sampled_from(Kind), st.fixed_dictionaries(FIELDS), st.binary(min_size=1, max_size=300))
def test_place_of_a_record_is_in_its_header(kind: Kind, fields: dict[str, int], data: bytes) -> None:
    buffer = raw(kind, data if kind is Kind.WRITE else b"", **fields)
    record, place = decode_untrusted(memoryview(buffer)), decode_place_untrusted(memoryview(buffer[:HEADER_SIZE]), 0)
    for name in ("kind", "volume", "offset", "length", "sequence", "size"):
        assert getattr(place, name) == getattr(record, name)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_every_flipped_bit_and_every_cut_of_a_header_is_detected(kind: Kind) -> None:
    good = raw(kind, DATA if kind is Kind.WRITE else b"", offset=512)[:HEADER_SIZE]
    for bit in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            decode_place_untrusted(memoryview(damaged), 0)
    with pytest.raises(RecordError):
        decode_place_untrusted(memoryview(good[:-1]), 0)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_every_flipped_bit_of_a_record_is_detected(kind: Kind) -> None:
    good = raw(kind, DATA if kind is Kind.WRITE else b"", offset=512, durable=6, origin=5, marker=1, volume=4)
    assert decodes(good) is not None
    for bit in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        assert decodes(bytes(damaged)) is None, f"bit {bit}"


def test_every_damaged_byte_and_every_shorter_record_is_detected() -> None:
    good = raw(Kind.WRITE, DATA)
    for index in range(len(good)):
        for value in (0, 255, good[index] ^ 255, good[index] ^ 0x55):
            if value != good[index]:
                assert decodes(good[:index] + bytes([value]) + good[index + 1 :]) is None, f"byte {index}"
        assert decodes(good[:index]) is None, f"cut at {index}"


@pytest.mark.parametrize("first", range(0, len(raw(Kind.WRITE, DATA)), 16))
def test_sectors_of_two_records_are_no_record(first: int) -> None:
    older, newer = raw(Kind.WRITE, DATA, sequence=7), raw(Kind.WRITE, DATA[::-1], sequence=8)
    mixed = older[:first] + newer[first:]
    assert decodes(mixed) is None or mixed in (older, newer)


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (Kind.WRITE, 0),
        (Kind.WRITE, MAX_DATA + 1),
        (Kind.ZEROES, 0),
        (Kind.TRIM, MAX_RANGE + 1),
        (Kind.WRITE, (1 << 32) - 1),
    ],
)
def test_length_that_cannot_be_is_refused_although_the_checksum_is_right(kind: Kind, length: int) -> None:
    header = encode_header(kind, sequence=1, time=1, generation=1, incarnation=1, length=length)
    with pytest.raises(RecordError, match="out of range"):
        decode_untrusted(memoryview(header + bytes(100)))


@pytest.mark.parametrize(("field", "value"), [(1, 0), (1, 2), (2, 0), (2, 8), (2, 255)])
def test_version_and_kind_of_another_time_are_refused_although_the_checksum_is_right(field: int, value: int) -> None:
    fields = list(HEADER.unpack(raw(Kind.TICK)))
    fields[field] = value
    body = HEADER.pack(*fields)[:-4]
    header = memoryview(body + HEADER_CRC.pack(crc32c(body)))
    with pytest.raises(RecordError, match="unknown record"):
        decode_untrusted(header)
    with pytest.raises(RecordError, match="unknown record"):
        decode_place_untrusted(header, 0)


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_a_run_of_records_is_given_up_to_the_first_damaged_byte(contents: list[bytes], drawn: st.DataObject) -> None:
    records = [raw(Kind.WRITE if data else Kind.TICK, data, sequence=n) for n, data in enumerate(contents)]
    buffer = bytearray(b"".join(records))
    assert [bytes(record.data) for _, record in iterate_untrusted(memoryview(buffer))] == contents
    if not buffer:
        return
    damaged = drawn.draw(st.integers(0, len(buffer) - 1))
    buffer[damaged] ^= drawn.draw(st.integers(1, 255))
    found: list[bytes] = []
    with pytest.raises(RecordError):
        found.extend(bytes(record.data) for _, record in iterate_untrusted(memoryview(buffer)))
    assert found == contents[: len(found)]
    before = [sum(map(len, records[:count])) for count in (len(found), len(found) + 1)]
    assert before[0] <= damaged < before[1], "all before the damage, and nothing from there on"


def test_header_is_as_long_as_the_format_says() -> None:
    assert len(encode_header(Kind.TICK, sequence=1, time=1, generation=1, incarnation=1)) == HEADER_SIZE
