"""The record of acknowledgements: several sessions, kills in between, and files that are something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostsim.bank_record import BankRecorder, read_bank_record
from hostsim.errors import BadRecord


def session(path: Path, found: list[int], acknowledged: list[tuple[int, int]], *, end: bool = True) -> None:
    recorder = BankRecorder.open(path, 7)
    recorder.event(event="start", **{"from": found})
    for number, (chain, counter) in enumerate(acknowledged):
        recorder.acknowledged(chain, counter, 1000 + number)
    if end:
        recorder.event(event="end")
    recorder.close()


def test_record_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    session(path, [0, 0], [(0, 1), (1, 1), (0, 2)])
    record = read_bank_record(path)
    assert record.run == 7
    assert record.complete
    assert record.last_ns == 1002
    assert [record.chains[chain].last for chain in (0, 1)] == [2, 1]


def test_a_session_goes_on_where_the_volumes_are(tmp_path: Path) -> None:
    """After a takeover the volumes are behind what was acknowledged: that part belongs to a copy that was given up."""
    path = tmp_path / "r.jsonl"
    session(path, [0, 0], [(0, 1), (0, 2), (0, 3), (1, 1)])
    session(path, [2, 1], [(0, 3), (1, 2), (1, 3)])
    record = read_bank_record(path)
    assert [record.chains[chain].last for chain in (0, 1)] == [3, 3]
    assert list(record.chains[0].times_ns) == [1000, 1001, 1000]


def test_unacknowledged_writes_found_in_the_volumes_count_as_done(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    session(path, [0], [(0, 1), (0, 2)])
    session(path, [3], [(0, 4)])
    assert read_bank_record(path).chains[0].last == 4


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_record_of_a_killed_host(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    session(path, [0], [(0, 1), (0, 2)], end=False)
    path.write_bytes(path.read_bytes()[:-cut])
    record = read_bank_record(path)
    assert not record.complete
    assert record.chains[0].last in (1, 2)
    session(path, [2], [(0, 3)])
    assert read_bank_record(path).chains[0].last == 3
    assert read_bank_record(path).complete


def test_record_of_another_run_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    session(path, [0], [])
    with pytest.raises(BadRecord, match="another run"):
        BankRecorder.open(path, 8)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense\n",
        '{"hostsim":"bank","version":2,"run":"7"}\n',
        '{"hostsim":"bank","version":1,"run":"7"}\n[0,1,5]\n',
        '{"hostsim":"bank","version":1,"run":"7"}\n{"event":"start","from":[0]}\n[0,2,5]\n',
        '{"hostsim":"bank","version":1,"run":"7"}\n{"event":"start","from":[0]}\n[0,1,\n[0,1,5]\n',
    ],
)
def test_bad_records_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(BadRecord):
        read_bank_record(path)
