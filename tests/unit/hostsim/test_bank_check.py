"""The checker of consistency itself: what it must accept, and every way in which a copy can be wrong."""

from __future__ import annotations

import io
from array import array
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hostsim.bank_check import check_bank
from hostsim.bank_layout import BankLayout
from hostsim.bank_record import BankRecord, ChainRecord
from hostsim.bank_report import BankReport, Fault
from hostsim.render import show_report
from hostsim.stamp import Kind, decode_untrusted, encode
from tests.unit.hostsim.worlds import RUN, Write, closed, history, image, small_layout

LAYOUT = small_layout()
WRITES = history(LAYOUT, 700, seed=1)


def judge(volumes: list[bytearray], record: BankRecord | None = None, *, lossless: bool = False) -> BankReport:
    return check_bank([bytes(volume) for volume in volumes], record, lossless=lossless)[0]


def faults(report: BankReport) -> set[Fault]:
    return {violation.fault for violation in report.violations}


def block_of(layout: BankLayout, volumes: list[bytearray], write: Write) -> bytes:
    at = write.planned.block * layout.block_size
    return bytes(volumes[write.planned.volume][at : at + layout.block_size])


def visible(volumes: list[bytearray]) -> list[Write]:
    """Return the writes that can still be seen, in the order in which they were issued."""
    return [write for write in WRITES if block_of(LAYOUT, volumes, write) == write.data]


def put(volumes: list[bytearray], write: Write, data: bytes) -> None:
    at = write.planned.block * LAYOUT.block_size
    volumes[write.planned.volume][at : at + LAYOUT.block_size] = data


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 57, 200, 699, 700])
def test_every_prefix_is_consistent(length: int) -> None:
    report = judge(image(LAYOUT, WRITES[:length]))
    assert report.violations == []
    assert report.money_total == report.money_expected == report.money_rolled_back


@given(
    seed=st.integers(0, 1 << 32),
    chains=st.integers(1, 6),
    ledgers=st.integers(1, 2),
    length=st.integers(0, 300),
    short=st.lists(st.integers(0, 6), min_size=6, max_size=6),
)
def test_cut_is_consistent_exactly_if_it_is_closed(
    seed: int, chains: int, ledgers: int, length: int, short: list[int]
) -> None:
    """Cut each chain off somewhere: the verdict is the brute-force one, by what was acknowledged before what."""
    layout = small_layout(chains=chains, ledgers=ledgers)
    writes = history(layout, length, seed)
    made = [max((w.planned.counter for w in writes if w.chain == chain), default=0) for chain in range(chains)]
    reached = [max(0, count - less) for count, less in zip(made, short, strict=False)]
    shown = [write for write in writes if write.planned.counter <= reached[write.chain]]
    report = check_bank([bytes(volume) for volume in image(layout, shown)])[0]
    assert report.consistent == closed(writes, reached), report.violations
    assert [state.writes for state in report.chains] == reached
    assert faults(report) <= {Fault.LOST_PREDECESSOR, Fault.CLEARING}
    assert report.money_total == report.money_expected


@given(seed=st.integers(0, 1 << 32), length=st.integers(0, 400), first=st.integers(0, 12), second=st.integers(0, 12))
def test_groups_applied_without_regard_to_each_other(seed: int, length: int, first: int, second: int) -> None:
    """Each of two groups is a prefix by itself (I1): consistent exactly if they make one cut (I5), by brute force."""
    writes = history(LAYOUT, length, seed)
    group_of = (0, 1, 0, 1)
    shown: list[Write] = []
    for group, short in ((0, first), (1, second)):
        own = [write for write in writes if group_of[write.planned.volume] == group]
        shown += own[: max(0, len(own) - short)]
    there = {(write.chain, write.planned.counter) for write in shown}
    whole = all(
        (chain, counter) in there
        for write in shown
        for chain, reached in enumerate(write.seen)  # its own chain's among them: a chain waits for each write
        for counter in range(1, reached + 1)
    )
    assert judge(image(LAYOUT, shown)).consistent == whole


@given(seed=st.integers(0, 1 << 32), dropped=st.integers(0, 399))
def test_dropped_write_is_found_unless_overwritten(seed: int, dropped: int) -> None:
    writes = history(LAYOUT, 400, seed)
    victim = writes[dropped]
    volumes = image(LAYOUT, [write for write in writes if write is not victim])
    whole = image(LAYOUT, writes)
    last_of_chain = max(write.planned.counter for write in writes if write.chain == victim.chain)
    report = judge(volumes)
    if volumes == whole:
        assert report.consistent
    elif victim.planned.counter < last_of_chain:
        assert Fault.MISSING_WRITE in faults(report)
    else:  # the last one of its chain: fine, unless something was issued after it was acknowledged
        after = any(write.seen[victim.chain] >= victim.planned.counter for write in writes)
        assert report.consistent != after


@pytest.mark.parametrize("volume", range(4))
def test_one_volume_rolled_back(volume: int) -> None:
    volumes = image(LAYOUT, WRITES)
    volumes[volume] = image(LAYOUT, WRITES[:-30])[volume]
    assert faults(judge(volumes)) & {Fault.MISSING_WRITE, Fault.LOST_PREDECESSOR}


def test_group_rolled_back_by_a_single_write() -> None:
    """The group that holds volumes 2 and 4 lacks its last write, and other volumes show what came after it."""
    group = {1, 3}
    seen_by_last = WRITES[-1].seen
    for victim in reversed(WRITES):
        acknowledged = seen_by_last[victim.chain] >= victim.planned.counter
        if victim.planned.volume in group and acknowledged and WRITES[-1].planned.volume not in group:
            break
    else:
        pytest.fail("no such write in this history")
    volumes = image(LAYOUT, WRITES)
    rolled_back = image(LAYOUT, WRITES[: WRITES.index(victim)])
    for volume in group:
        volumes[volume] = rolled_back[volume]
    assert faults(judge(volumes)) & {Fault.MISSING_WRITE, Fault.LOST_PREDECESSOR}


def test_later_write_without_the_earlier_one_of_another_chain() -> None:
    """Chain 0 is cut back behind what others had seen: each chain by itself is a prefix, together they are no cut."""
    short = [write for write in WRITES if write.chain != 0 or write.planned.counter <= 20]
    report = judge(image(LAYOUT, short))
    assert Fault.LOST_PREDECESSOR in faults(report)
    assert Fault.MISSING_WRITE not in faults(report)


def test_clearing_shows_money_that_was_never_sent() -> None:
    receiver = next(
        write for write in reversed(WRITES) if write.planned.needs is not None and write.planned.kind is Kind.INTENT
    )
    assert receiver.planned.needs is not None
    sender, sent = receiver.planned.needs
    short = [write for write in WRITES if write.chain != sender or write.planned.counter < sent]
    assert Fault.CLEARING in faults(judge(image(LAYOUT, short)))


@pytest.mark.parametrize("sector", [1, 100, 256, 511])
def test_torn_block(sector: int) -> None:
    volumes = image(LAYOUT, WRITES)
    victim = visible(volumes)[-1]
    torn = victim.data[:sector] + bytes(LAYOUT.block_size - sector)
    put(volumes, victim, torn)
    assert Fault.DAMAGED in faults(judge(volumes))


def test_torn_between_two_valid_blocks() -> None:
    """Old and new content of one block mixed at every byte: never taken for either."""
    volumes = image(LAYOUT, WRITES)
    place = (visible(volumes)[-1].planned.volume, visible(volumes)[-1].planned.block)
    new, old = [w.data for w in WRITES if (w.planned.volume, w.planned.block) == place][-1:-3:-1]
    for at in range(1, LAYOUT.block_size):
        mixed = new[:at] + old[at:]
        if mixed not in (new, old):
            put(volumes, visible(image(LAYOUT, WRITES))[-1], mixed)
            assert Fault.DAMAGED in faults(judge(volumes))


def test_every_flipped_bit_of_a_block_is_found() -> None:
    volumes = image(LAYOUT, WRITES)
    victim = visible(volumes)[0]
    for bit in range(0, LAYOUT.block_size * 8, 13):
        changed = bytearray(victim.data)
        changed[bit // 8] ^= 1 << bit % 8
        put(volumes, victim, bytes(changed))
        assert Fault.DAMAGED in faults(judge(volumes))


def test_zeroed_block_is_a_missing_write() -> None:
    volumes = image(LAYOUT, WRITES)
    victim = visible(volumes)[0]
    put(volumes, victim, bytes(LAYOUT.block_size))
    assert Fault.MISSING_WRITE in faults(judge(volumes))


def test_money_lost_in_a_valid_block() -> None:
    volumes = image(LAYOUT, WRITES)
    victim = next(write for write in visible(volumes) if write.planned.kind is Kind.DEBIT)
    stamp = decode_untrusted(victim.data)
    put(volumes, victim, encode(replace(stamp, source_balance=stamp.source_balance - 1), LAYOUT.block_size))
    assert faults(judge(volumes)) == {Fault.MONEY, Fault.WRONG_CONTENT}


def test_block_at_another_place_is_foreign() -> None:
    volumes = image(LAYOUT, WRITES)
    first, second = visible(volumes)[:2]
    put(volumes, first, second.data)
    assert Fault.FOREIGN in faults(judge(volumes))


def test_block_of_another_run_is_foreign() -> None:
    volumes = image(LAYOUT, WRITES)
    victim = visible(volumes)[-1]
    put(volumes, victim, encode(replace(decode_untrusted(victim.data), run=RUN + 1), LAYOUT.block_size))
    assert Fault.FOREIGN in faults(judge(volumes))


@pytest.mark.parametrize("field", ["chain", "counter", "txn", "source", "target", "kind"])
def test_impossible_stamp_with_a_valid_checksum_never_breaks_the_checker(field: str) -> None:
    volumes = image(LAYOUT, WRITES)
    victim = visible(volumes)[-1]
    stamp = decode_untrusted(victim.data)
    other_kind = Kind.INTENT if stamp.kind is not Kind.INTENT else Kind.COMMIT
    value: Any = {"chain": 200, "counter": 1 << 60, "txn": 1 << 60, "kind": other_kind}.get(field, 0xFFFFFFFF)
    changed = replace(stamp, **{field: value})
    put(volumes, victim, encode(changed, LAYOUT.block_size))
    assert not judge(volumes).consistent


def test_before_and_during_format() -> None:
    empty = [bytearray(len(volume)) for volume in image(LAYOUT, [])]
    report = judge(empty)
    assert report.consistent
    assert not report.formatted
    part = [*image(LAYOUT, [])[:2], *empty[2:]]
    assert judge(part).consistent
    assert faults(judge([empty[0], *image(LAYOUT, [])[1:]])) == {Fault.FORMAT}


def test_data_without_all_superblocks_is_found() -> None:
    volumes = image(LAYOUT, WRITES[:50])
    volumes[3] = bytearray(len(volumes[3]))
    assert faults(judge(volumes)) == {Fault.FORMAT}
    assert faults(judge([bytearray(b"x" * 8192), *volumes[1:]])) == {Fault.FORMAT}


def test_data_of_others_is_no_bank() -> None:
    report = judge([bytearray(b"x" * 8192), bytearray(8192)])
    assert report.foreign
    assert not report.consistent, "nobody may take it for a copy"
    volumes = image(LAYOUT, WRITES[:50])
    assert not judge([bytearray(b"x" * 8192), *volumes[1:]]).foreign
    assert not judge([bytearray(LAYOUT.block_size) + volume[LAYOUT.block_size :] for volume in volumes]).foreign
    assert not judge([bytearray(8192)]).foreign


def test_consistent_and_incomplete_is_called_so() -> None:
    out = io.StringIO()
    report = judge(image(LAYOUT, WRITES[:600]), record_of(WRITES), lossless=True)
    show_report(Console(file=out, width=200), report)
    assert "consistent, but NOT COMPLETE" in out.getvalue()
    assert "NOT CONSISTENT" not in out.getvalue()
    assert (report.as_dict()["consistent"], report.as_dict()["incomplete"]) == (False, True)
    broken = image(LAYOUT, WRITES[:600])
    broken[0] = image(LAYOUT, WRITES[:300])[0]
    assert not judge(broken, record_of(WRITES), lossless=True).incomplete


def test_volumes_in_any_order_and_the_wrong_number_of_them() -> None:
    volumes = image(LAYOUT, WRITES)
    assert judge([volumes[2], volumes[0], volumes[3], volumes[1]]).consistent
    assert faults(judge(volumes[:3])) == {Fault.FORMAT}
    assert faults(judge([*volumes, volumes[0]])) == {Fault.FORMAT}


def record_of(writes: list[Write], *, complete: bool = True) -> BankRecord:
    """Return the record of a host that saw everything acknowledged, one write each millisecond."""
    record = BankRecord(RUN, {chain: ChainRecord(1, array("Q")) for chain in range(LAYOUT.chains)}, complete)
    for number, write in enumerate(writes):
        record.chains[write.chain].times_ns.append(number * 1_000_000)
    return record


def test_record_says_what_is_missing() -> None:
    report = judge(image(LAYOUT, WRITES[:600]), record_of(WRITES))
    assert report.consistent
    assert report.missing_writes == 100
    assert report.missing_transfers == sum(write.planned.kind is Kind.COMMIT for write in WRITES[600:])
    assert report.rpo_s == pytest.approx(0.099)
    assert Fault.NOT_ACKNOWLEDGED_ALL in faults(judge(image(LAYOUT, WRITES[:600]), record_of(WRITES), lossless=True))


def test_record_counts_all_as_missing_in_an_empty_copy() -> None:
    empty = [bytearray(len(volume)) for volume in image(LAYOUT, [])]
    report = judge(empty, record_of(WRITES))
    assert report.missing_writes == len(WRITES)


def test_unacknowledged_writes_may_be_visible_and_others_may_not() -> None:
    volumes = image(LAYOUT, WRITES)
    last = {write.chain: write for write in WRITES}
    kept = [write for write in WRITES if last[write.chain] is not write]
    report = judge(volumes, record_of(kept), lossless=True)
    assert report.consistent
    assert [state.beyond_record for state in report.chains] == [1] * LAYOUT.chains
    assert Fault.NEVER_ISSUED in faults(judge(volumes, record_of(WRITES[:600])))
    assert judge(volumes, record_of(WRITES[:600], complete=False)).consistent


def test_record_of_another_run_is_refused() -> None:
    record = record_of(WRITES)
    record.run = 5
    assert faults(judge(image(LAYOUT, WRITES), record)) == {Fault.FOREIGN}


def test_report_as_plain_data() -> None:
    facts = judge(image(LAYOUT, WRITES), record_of(WRITES)).as_dict()
    assert facts["consistent"] is True
    assert facts["run"] == f"{RUN:016x}"
    assert {host["host"] for host in facts["hosts"]} == {1, 2, 3}
