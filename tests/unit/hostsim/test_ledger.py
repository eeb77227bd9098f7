"""What a block may show, and the record file that keeps it over a kill of the host."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostsim.errors import BadRecord
from hostsim.ledger import Issued, Ledger, WrongBlock, decode_block_untrusted, encode_block
from hostsim.verify_record import VerifyRecorder, read_verify_record


def ledger_with(*writes: tuple[int, str]) -> Ledger:
    """Return a ledger of one block after writes (counter, outcome); a: acknowledged, z: zeros were written."""
    ledger = Ledger(1)
    for counter, outcome in writes:
        ledger.issue(Issued(counter, 0, 1, "z" in outcome))
        if "a" in outcome:
            ledger.acknowledge(counter)
        else:
            ledger.lose(counter)
    return ledger


@pytest.mark.parametrize(
    ("writes", "allowed"),
    [
        ([], {0}),
        ([(1, "a")], {1}),
        ([(1, "lost")], {0, 1}),
        ([(1, "a"), (2, "a")], {2}),
        ([(1, "a"), (2, "lost")], {1, 2}),
        ([(1, "lost"), (2, "a")], {2}),
        ([(1, "a"), (2, "za")], {0}),
        ([(1, "a"), (2, "z lost")], {1, 0}),
        ([(1, "za"), (2, "lost")], {0, 2}),
        ([(1, "za"), (2, "a"), (3, "lost")], {2, 3}),
    ],
)
def test_block_shows_last_acknowledged_or_later_unknown(writes: list[tuple[int, str]], allowed: set[int]) -> None:
    for shown in range(5):
        ledger = ledger_with(*[(counter, outcome.replace("lost", "")) for counter, outcome in writes])
        assert (ledger.seen(0, shown) == "") == (shown in allowed), shown


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_read_decides_what_was_unknown(first: int, second: int) -> None:
    ledger = ledger_with((1, "a"), (2, ""))
    assert ledger.unsettled(0)
    assert ledger.seen(0, first) == ""
    assert not ledger.unsettled(0)
    assert ledger.seen(0, first) == ""
    assert f"shows write {second}" in ledger.seen(0, second)


def test_block_there_and_back() -> None:
    for size in (512, 4096):
        data = encode_block(9, 3, 7, size)
        assert len(data) == size
        assert decode_block_untrusted(data, 9, 3) == 7
        assert decode_block_untrusted(bytes(size), 9, 3) == 0


@pytest.mark.parametrize(
    "data",
    [
        encode_block(9, 4, 7, 512),
        encode_block(8, 3, 7, 512),
        encode_block(9, 3, 7, 512)[:256] + encode_block(9, 3, 8, 512)[256:],
        bytes(511) + b"x",
        encode_block(9, 3, 7, 512)[:256] + bytes(256),
    ],
)
def test_wrong_blocks_are_found(data: bytes) -> None:
    with pytest.raises(WrongBlock):
        decode_block_untrusted(data, 9, 3)


@given(seed=st.integers(0, 1 << 32), commands=st.integers(0, 60), cut=st.integers(0, 20))
def test_record_read_back_allows_what_the_host_would(
    tmp_path_factory: pytest.TempPathFactory, seed: int, commands: int, cut: int
) -> None:
    """The record of a host that was killed allows at least all that the host itself would have allowed."""
    path = tmp_path_factory.mktemp("record") / "w.jsonl"
    chance = random.Random(seed)
    ledger = Ledger(8)
    recorder = VerifyRecorder(path)
    recorder.begin(5, 512, 8)
    for counter in range(1, commands + 1):
        block = chance.randrange(6)
        write = Issued(counter, block, chance.randint(1, 2), chance.random() < 0.2)
        ledger.issue(write)
        recorder.issued(write)
        if chance.random() < 0.7:
            ledger.acknowledge(counter)
            recorder.acknowledged(counter)
        else:
            ledger.lose(counter)
            recorder.lost(counter)
    recorder.close()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - min(cut, len(data) - data.index(b"}") - 2)])
    record = read_verify_record(path)
    assert (record.run, record.block_size, record.ledger.blocks) == (5, 512, 8)
    if cut == 0:
        for block in range(8):
            for shown in range(commands + 1):
                # A question decides what was unknown, so each is asked of ledgers that were not asked before.
                expected = copy.deepcopy(ledger).seen(block, shown)
                assert copy.deepcopy(record.ledger).seen(block, shown) == expected


def test_record_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    recorder = VerifyRecorder(path)
    recorder.begin(5, 512, 4)
    recorder.issued(Issued(1, 0, 1, False))
    recorder.acknowledged(1)
    recorder.issued(Issued(2, 0, 1, False))
    recorder.close()
    with path.open("a") as file:
        file.write('["a",')
    again = VerifyRecorder(path)
    again.resume()
    again.seen(0, 2)
    again.issued(Issued(3, 1, 1, False))
    again.close()
    ledger = read_verify_record(path).ledger
    assert ledger.last_counter == 3
    assert ledger.seen(0, 1) != ""
    assert ledger.seen(0, 2) == ""
    assert ledger.seen(1, 0) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense\n",
        "[1,2]\n",
        '{"hostsim":"bank","version":1,"run":"1"}\n',
        '{"hostsim":"write-verify","version":1,"run":"1","block_size":512,"blocks":4}\n["w",1\n["a",1]\n',
        '{"hostsim":"write-verify","version":1,"run":"1","block_size":512,"blocks":4}\n["a",1]\n',
        '{"hostsim":"write-verify","version":1,"run":"1","block_size":512,"blocks":4}\n["w",1,7,1,0]\n["a",1]\n',
    ],
)
def test_bad_records_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(text)
    with pytest.raises(BadRecord):
        read_verify_record(path)
