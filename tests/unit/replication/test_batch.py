"""The receiver's hot loop agrees with the plain decoder, and takes nothing that is damaged (I10)."""

from __future__ import annotations

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.errors import Corrupt
from controllerd.model.records import MAX_DATA, Kind, encode_header
from controllerd.replication.batch import parse_batch_untrusted
from tests.records import iterate_untrusted

GENERATION = 9


def encode(kind: Kind, sequence: int, time: int, data: bytes = b"", **facts: int) -> bytes:
    if kind is Kind.WRITE:
        facts |= {"length": len(data), "data_crc": crc32c(data)}
    fields = {"generation": GENERATION, "incarnation": 1, **facts}
    return encode_header(kind, sequence=sequence, time=time, **fields) + data


def one_record(sequence: int, time: int, draw: tuple[int, bytes, int, int]) -> bytes:
    choice, data, volume, offset = draw
    facts = {"volume": volume, "offset": offset, "origin": sequence * 2, "incarnation": 1 + sequence % 1000 // 4}
    kind = (Kind.WRITE, Kind.ZEROES, Kind.TRIM, Kind.TICK, Kind.MARKER)[choice]
    if kind in (Kind.ZEROES, Kind.TRIM):
        facts["length"] = len(data)
    return encode(kind, sequence, time, data if kind is Kind.WRITE else b"", **facts)


records = st.lists(
    st.tuples(st.integers(0, 4), st.binary(min_size=1, max_size=60), st.integers(0, 2**32 - 1), st.integers(0, 2**40)),
    min_size=1,
    max_size=12,
)


@given(records, st.integers(1, 2**40), st.integers(0, 2**62))
def test_batch_says_the_same_as_the_plain_decoder(
    draws: list[tuple[int, bytes, int, int]], first: int, time: int
) -> None:
    raw = b"".join(one_record(first + index, time + index // 2, draw) for index, draw in enumerate(draws))
    batch = parse_batch_untrusted(memoryview(raw), first, len(draws), GENERATION)
    plain = [record for _, record in iterate_untrusted(memoryview(raw))]
    assert batch.last == first + len(draws) - 1
    for entry, record in zip(batch.entries, plain, strict=True):
        assert entry[:7] == (
            record.sequence, record.time, record.kind, record.volume, record.offset, record.length, record.origin,
        )  # fmt: skip
        assert (entry.data or b"") == record.data
    assert batch.arrivals == [(record.time, record.sequence, record.kind) for record in plain]
    runs = dict(batch.runs)
    current = 0
    for record in plain:
        current = runs.get(record.sequence, current)
        assert current == record.incarnation


@given(records, st.data())
def test_any_flipped_bit_is_found(draws: list[tuple[int, bytes, int, int]], data: st.DataObject) -> None:
    raw = bytearray(b"".join(one_record(1 + index, index, draw) for index, draw in enumerate(draws)))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        parse_batch_untrusted(memoryview(raw), 1, len(draws), GENERATION)


def test_every_flipped_byte_of_data_is_found() -> None:
    """Data is a small part of what is drawn above: here a planted defect without its checksum lives no longer."""
    whole = encode(Kind.WRITE, 1, 5, data=b"data" * 8)
    for byte in range(len(whole) - 32, len(whole)):
        raw = bytearray(whole)
        raw[byte] ^= 1
        with pytest.raises(Corrupt):
            parse_batch_untrusted(memoryview(raw), 1, 1, GENERATION)


@given(records, st.data())
def test_a_frame_cut_short_is_found(draws: list[tuple[int, bytes, int, int]], data: st.DataObject) -> None:
    raw = b"".join(one_record(1 + index, index, draw) for index, draw in enumerate(draws))
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(Corrupt):
        parse_batch_untrusted(memoryview(raw)[:cut], 1, len(draws), GENERATION)


WRONG = {
    "another generation": encode(Kind.TICK, 1, 5, generation=8),
    "a number left out": encode(Kind.TICK, 2, 5),
    "a number again": encode(Kind.TICK, 1, 5) + encode(Kind.TICK, 1, 6),
    "a time that goes back": encode(Kind.TICK, 1, 5) + encode(Kind.TICK, 2, 4),
    "a time behind which there is no other": encode(Kind.TICK, 1, (1 << 64) - 1),
    "a time so late that it is none": encode(Kind.TICK, 1, 5) + encode(Kind.TICK, 2, 1 << 63),
    "a note, which is local to a journal": encode(Kind.NOTE, 1, 5),
    "an unknown kind": encode_header(9, sequence=1, time=5, generation=GENERATION, incarnation=1),
    "a write of no bytes": encode(Kind.WRITE, 1, 5, b""),
    "zeroes of no bytes": encode(Kind.ZEROES, 1, 5),
    "zeroes of too many bytes": encode(Kind.ZEROES, 1, 5, length=(1 << 30) + 1),
    "a write that is too long": encode_header(
        Kind.WRITE, sequence=1, time=5, generation=GENERATION, incarnation=1, length=MAX_DATA + 1
    )
    + bytes(MAX_DATA + 1),
    "nothing": b"",
}


@pytest.mark.parametrize("name", WRONG)
def test_records_that_cannot_follow_are_refused(name: str) -> None:
    raw = WRONG[name]
    for count in (1, 2):
        with pytest.raises(Corrupt):
            parse_batch_untrusted(memoryview(raw), 1, count, GENERATION)
