"""The tap reads what the controllers' codec writes, and nothing else."""

from __future__ import annotations

from typing import Any

from crc32c import crc32c

from controllerd.model.records import Kind, encode_header
from tests.simulation.checker.journal_tap import Tap
from tests.simulation.history import SECTOR, History, Journaled, encode


def _record(kind: Kind, sequence: int, data: bytes = b"", **facts: Any) -> bytes:
    facts.setdefault("length", len(data))
    crc = crc32c(data) if data else 0
    head = encode_header(
        kind, sequence=sequence, time=sequence * 7, generation=5, incarnation=2, volume=77, data_crc=crc, **facts
    )  # fmt: skip
    return head + data


def _tap() -> Tap:
    return Tap(History.make(3, {"g": {"v": 8 * SECTOR}}), "A", "g", {77: "v"})


def test_notes_every_record_with_the_write_it_carries() -> None:
    tap = _tap()
    data = encode(3, tap.history.volumes["v"], 40, SECTOR, 2 * SECTOR)
    raw = _record(Kind.WRITE, 1, data, offset=SECTOR) + _record(Kind.TRIM, 2, length=4096) + _record(Kind.NOTE, 2)
    tap.note(1.5, raw + _record(Kind.TICK, 3) + bytes(4096))
    records = tap.history.events
    assert all(isinstance(record, Journaled) for record in records)
    facts = [(r.sequence, r.time, r.kind, r.offset, r.length, r.serial) for r in records if isinstance(r, Journaled)]
    assert facts == [(1, 7, 1, SECTOR, 2 * SECTOR, 40), (2, 14, 3, 0, 4096, None), (3, 21, 5, 0, 0, None)]


def test_stops_at_the_first_byte_that_is_wrong() -> None:
    good = _record(Kind.WRITE, 1, b"x" * SECTOR)
    for byte in (0, 30, 79, 80, len(good) - 1):
        broken = bytearray(good)
        broken[byte] ^= 1
        tap = _tap()
        tap.note(0.0, bytes(broken) + good)
        assert tap.history.events == []
    tap = _tap()
    tap.note(0.0, good[:-1])
    assert tap.history.events == []
