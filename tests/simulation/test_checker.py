"""The checker is checked: right histories pass, and each kind of mistake is found by the class it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.checker import INVARIANTS, NOT_JUDGED, check
from tests.simulation.checker_toy import Toy
from tests.simulation.history import (
    DAMAGED,
    SECTOR,
    Acknowledged,
    Crashed,
    Durable,
    Failed,
    FaultBegun,
    FaultEnded,
    Held,
    History,
    Image,
    Quiet,
    Status,
    Submitted,
    decode_untrusted,
    encode,
    load,
)

VOLUME = st.sampled_from(("v0", "v1"))
STEP = st.one_of(
    st.tuples(st.just("write"), VOLUME, st.integers(0, 6), st.integers(1, 2), st.sampled_from(("write", "trim"))),
    st.tuples(st.just("submit"), VOLUME, st.integers(0, 6), st.integers(1, 2)),
    st.tuples(st.just("ack")),
    st.tuples(st.just("flush")),
    st.tuples(st.just("read"), VOLUME),
    st.tuples(st.just("image"), st.sampled_from("AB")),
    st.tuples(st.just("apply"), st.integers(1, 5)),
    st.tuples(st.just("kill")),
    st.tuples(st.just("power"), st.integers(0, 4)),
)


def play(toy: Toy, steps: list[tuple[object, ...]]) -> None:
    """Do what ``steps`` say."""
    open_writes: list[Submitted] = []
    for name, *facts in steps:
        match name, facts:
            case "write", [str(volume), int(sector), int(count), str(what)]:
                toy.write(volume, sector, count, what=what)
            case "submit", [str(volume), int(sector), int(count)]:
                open_writes.append(toy.submit(volume, sector, count))
            case "ack", _ if open_writes:
                toy.ack(open_writes.pop())
            case "flush", _:
                toy.flush()
            case "read", [str(volume)]:
                toy.read(toy.primary, volume)
            case "image", [str(site)] if toy.paired:
                toy.image(site)
            case "apply", [int(count)]:
                toy.apply(count)
            case "kill", _:
                toy.crash("C", "kill")
                open_writes.clear()
                toy.restart("C")
            case "power", [int(lose)] if not toy.paired:
                toy.crash("C", "power", lose)
                open_writes.clear()
                toy.restart("C")
            case _:
                pass
    for write in open_writes:
        toy.ack(write)


def found(toy: Toy) -> set[str]:
    """Return the names of the invariants that do not hold."""
    return {violation.invariant for violation in check(toy.history)}


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.lists(STEP, max_size=40), st.sampled_from(("none", "A", "B")), st.lists(STEP, max_size=10))
def test_right_histories_pass(
    paired: bool, steps: list[tuple[object, ...]], takes: str, after: list[tuple[object, ...]]
) -> None:
    toy = Toy(paired)
    play(toy, steps)
    if paired and takes != "none":
        toy.crash("C", "disk")
        if takes == "B":
            toy.crash("A", "disk")
        toy.take_over(takes)
        toy.image(takes)
        play(toy, [step for step in after if step[0] not in ("kill", "power", "image", "apply")])
        toy.image(takes)
    else:
        toy.rest()
    assert check(toy.history) == []


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(VOLUME, st.integers(0, 6), st.integers(1, 2)), min_size=3, max_size=20), st.data())
def test_a_secondary_without_one_of_its_writes_is_found(
    writes: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    toy = Toy()
    for volume, sector, count in writes:
        toy.write(volume, sector, count)
    toy.apply(len(writes))
    whole = toy.shown("B")
    left_out = data.draw(st.integers(0, len(writes) - 2))
    missed = toy.logs["B"].pop(left_out)
    toy.image("B")
    expected = set() if toy.shown("B") == whole else {"I5"}
    if expected and any(write.group == missed.group for write in toy.logs["B"][left_out:]):
        visible = {serial for shown in toy.shown("B").values() for serial in shown}
        if any(w.serial in visible and w.group == missed.group for w in toy.logs["B"][left_out:]):
            expected.add("I1")
    assert found(toy) == expected


# ---- one mistake each ------------------------------------------------------------------


def _hole(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.write("v0", 1)
    toy.apply(2)
    del toy.logs["B"][0]
    toy.image("B")


def _reordered(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.write("v0", 0)
    toy.write("v0", 1)
    toy.apply(3)
    toy.logs["B"] = [toy.logs["B"][index] for index in (1, 0, 2)]
    toy.image("B")


def _zeros_undone(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.write("v0", 0, what="trim")
    toy.write("v0", 1)
    toy.apply(3)
    del toy.logs["B"][1]
    toy.image("B")


def _hole_behind_a_power_loss(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.write("v0", 1)
    toy.crash("C", "power")
    toy.restart("C")
    del toy.logs["C"][0]
    toy.image("C")


def _cut_across_groups(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.write("v1", 0)
    toy.apply(2)
    del toy.logs["B"][0]
    toy.image("B")


def _cut_across_sites_by_host_times(toy: Toy) -> None:
    toy.history.domains[0].time_source = "host"
    toy.write("v0", 0, host_time=10)
    toy.order("D", "pair-create", "g1", {"secondary": "A", "mode": "sync"})
    toy.primary = "D"
    toy.logs["D"] = []
    toy.logs["B"] = [toy.write("v1", 0, host_time=20)]
    toy.image("B")


def _cut_by_host_times_taken_over(toy: Toy) -> None:
    _cut_across_sites_by_host_times(toy)
    toy.take_over("B")
    toy.write("v1", 1, host_time=30)
    toy.image("B")


def _half_a_write(toy: Toy) -> None:
    toy.write("v0", 0, 2)
    write = toy.submit("v0", 0, 2)
    toy.apply(2)
    shown = toy.shown("B")
    toy.image("B", {**shown, "v0": (shown["v0"][0], write.serial - 1, *shown["v0"][2:])})


def _two_writes_mixed(toy: Toy) -> None:
    first, second = toy.submit("v0", 0, 2), toy.submit("v0", 0, 2)
    shown = toy.shown("B")
    toy.image("B", {**shown, "v0": (first.serial, second.serial, *shown["v0"][2:])})


def _number_used_twice(toy: Toy) -> None:
    toy.journaled("A", toy.submit("v0", 0), 1)
    toy.journaled("B", toy.submit("v0", 1), 1)


def _number_left_out(toy: Toy) -> None:
    for number, sequence in enumerate((1, 2, 4)):
        toy.journaled("A", toy.submit("v0", number), sequence)


def _time_goes_back(toy: Toy) -> None:
    toy.journaled("A", toy.submit("v0", 0), 1, time=50)
    toy.journaled("A", toy.submit("v0", 1), 2, time=49)


def _host_time_ignored(toy: Toy) -> None:
    toy.history.domains[0].time_source = "host"
    toy.journaled("A", toy.submit("v0", 0, host_time=100), 1, time=99)


def _acknowledged_before_the_mirror(toy: Toy) -> None:
    first, second = toy.submit("v0", 0), toy.submit("v0", 1)
    toy.journaled("C", first, 1)
    toy.journaled("A", first, 1)
    toy.journaled("C", second, 2)
    toy.ack(second)


def _acknowledged_before_the_journal(toy: Toy) -> None:
    first, second = toy.submit("v0", 0), toy.submit("v0", 1)
    toy.journaled("C", first, 1)
    toy.journaled("A", first, 1)
    toy.journaled("A", second, 2)
    toy.ack(second)


def _mirrored_write_lost(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.crash("C", "disk")
    toy.logs["A"].clear()
    toy.take_over("A")
    toy.image("A")


def _mirrored_and_flushed_write_lost(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.flush()
    toy.crash("C", "disk")
    toy.crash("A", "power")
    toy.restart("A")
    toy.logs["A"].clear()
    toy.take_over("A")
    toy.read("A", "v0")


def _flushed_write_lost(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.flush()
    toy.crash("C", "power")
    toy.restart("C")
    toy.logs["C"].clear()
    toy.read("C", "v0")


def _stable_write_lost(toy: Toy) -> None:
    toy.history.stable = True
    toy.write("v0", 0)
    toy.crash("C", "power", 1)
    toy.restart("C")
    toy.image("C")


def _killed_daemon_lost_a_write(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.crash("C", "kill")
    toy.restart("C")
    toy.logs["C"].clear()
    toy.read("C", "v0")


def _stale_read(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.write("v0", 0)
    toy.logs["C"].pop()
    toy.read("C", "v0")


def _invented(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.image("B", {"v0": (99, 0, 0, 0, 0, 0, 0, 0)})


def _in_the_wrong_place(toy: Toy) -> None:
    write = toy.write("v0", 0)
    toy.image("B", {"v0": (write.serial, write.serial, 0, 0, 0, 0, 0, 0)})


def _refused_and_yet_done(toy: Toy) -> None:
    write = toy.submit("v0", 0)
    toy.add(Failed, serial=write.serial, error="EPERM")
    toy.read("C", "v0")


def _read_and_then_older(toy: Toy) -> None:
    toy.submit("v0", 0)
    toy.read("C", "v0")
    toy.logs["C"].clear()
    toy.read("C", "v0")


def _back_and_forth(toy: Toy) -> None:
    toy.submit("v0", 0)
    toy.submit("v0", 0)
    for order in ((0, 1), (1, 0), (1, 0)):
        log = toy.logs["C"]
        toy.logs["C"] = [log[index] for index in order]
        toy.read("C", "v0")


def _late_after_all(toy: Toy) -> None:
    toy.submit("v0", 0)
    toy.crash("C", "power", 1)
    toy.restart("C")
    lost = toy.history.events[-3]
    toy.write("v0", 0)
    assert isinstance(lost, Submitted)
    toy.logs["C"].append(lost)
    toy.read("C", "v0")


def _damaged_image(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.image("C", {"v0": (DAMAGED, 0, 0, 0, 0, 0, 0, 0)})


def _damaged_read(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.read("C", "v0")
    answer = toy.history.events[-1]
    toy.history.events[-1] = type(answer)(answer.at, answer.read, (DAMAGED,) * 8)  # type: ignore[attr-defined,call-arg]


def _hangs(toy: Toy) -> None:
    toy.submit("v0", 0)
    toy.now += 51
    toy.add(Crashed, site="A", how="kill")


def _answered_too_late(toy: Toy) -> None:
    write = toy.submit("v0", 0)
    toy.now += 51
    toy.ack(write)


def _hangs_after_a_stall(toy: Toy) -> None:
    write = toy.submit("v0", 0)
    toy.add(FaultBegun, name="F14 slow", stalls="C")
    toy.now += 100
    toy.add(FaultEnded, name="F14 slow")
    toy.now += 51
    toy.ack(write)


def _cut_goes_back(toy: Toy) -> None:
    toy.status("B", "g0", "secondary", "A", "PAIR", cut_time=10)
    toy.status("B", "g0", "secondary", "A", "PAIR", cut_time=9)


def _applied_goes_back(toy: Toy) -> None:
    toy.status("B", "g0", "secondary", "A", "PAIR", applied=10)
    toy.status("B", "g0", "secondary", "A", "PAIR", applied=9)


def _durable_goes_back(toy: Toy) -> None:
    toy.status("B", "g0", "secondary", "A", "PAIR", durable=10)
    toy.crash("B", "power")
    toy.restart("B")
    toy.status("B", "g0", "secondary", "A", "PAIR", durable=9)


def _mirrored_write_lost_behind_a_reboot(toy: Toy) -> None:
    toy.history.stable = True
    toy.write("v0", 0)
    toy.crash("C", "power")
    toy.restart("C")
    toy.logs["A"].clear()
    toy.take_over("A")
    toy.image("A")


def _branch_of_its_own(toy: Toy) -> None:
    toy.crash("C", "disk")
    toy.take_over("B")
    toy.primary = "A"
    toy.paired = False
    stray = toy.submit("v0", 0)
    toy.logs["B"].append(stray)
    toy.image("B")


def _pair_again_after_takeover(toy: Toy) -> None:
    toy.take_over("B")
    toy.status("B", "g0", "secondary", "A", "PAIR")


def _never_fenced(toy: Toy) -> None:
    toy.take_over("B")
    toy.add(Quiet, bound_s=1.0)
    toy.status("A", "g0", "primary", "B", "PAIR")


def _lag_understated(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.now += 10
    toy.status("B", "g0", "secondary", "A", "PAIR", lag_s=1.0)
    toy.now -= 0.01
    toy.image("B")


def _suspended_for_no_reason(toy: Toy) -> None:
    toy.status("A", "g0", "primary", "B", "PSUE")


def _suspended_at_one_end(toy: Toy) -> None:
    toy.status("A", "g0", "primary", "B", "PSUE", reason="link")
    toy.status("B", "g0", "secondary", "A", "PAIR")
    toy.add(Quiet, bound_s=1.0)


def _taken_over_while_copying(toy: Toy) -> None:
    toy.status("B", "g0", "secondary", "A", "COPY")
    toy.take_over("B")


def _taken_over_inconsistent(toy: Toy) -> None:
    toy.image("B", consistent=False)
    toy.take_over("B")


def _writes_after_its_takeover(toy: Toy) -> None:
    toy.take_over("A")
    toy.status("C", "g0", "primary", "A", "SSWS")
    toy.primary = "C"
    toy.paired = False
    toy.write("v0", 0)


def _secondary_writable(toy: Toy) -> None:
    toy.primary = "A"
    toy.paired = False
    toy.write("v0", 0)


def _generation_kept(toy: Toy) -> None:
    toy.take_over("B")
    toy.status("A", "g0", "primary", "B", "PSUE", reason="link", generation=4)
    toy.status("B", "g0", "primary", "", "SMPL", generation=4)


def _daemon_ended(toy: Toy) -> None:
    toy.crash("A", "fault")


def _comes_to_rest_copying(toy: Toy) -> None:
    toy.rest()
    toy.status("A", "g0", "primary", "B", "COPY")
    toy.status("B", "g0", "secondary", "A", "COPY")


def _comes_to_rest_different(toy: Toy) -> None:
    toy.write("v0", 0)
    toy.rest()
    toy.logs["B"].clear()
    toy.image("B")


def _found_something_else(toy: Toy) -> None:
    toy.submit("v0", 0)
    for _ in range(2):
        toy.crash("C", "power", 0)
        toy.restart("C")
        toy.image("C")
        toy.logs["C"].clear()


ALONE = {_hole_behind_a_power_loss, _flushed_write_lost, _stable_write_lost, _late_after_all, _found_something_else}
MISTAKES: dict[Callable[[Toy], None], str] = {
    _hole: "I1 I5",
    _reordered: "I1 I5",
    _zeros_undone: "I1 I5",
    _hole_behind_a_power_loss: "I1",
    _cut_across_groups: "I5",
    _cut_across_sites_by_host_times: "I5",
    _cut_by_host_times_taken_over: "I5",
    _half_a_write: "I8",
    _two_writes_mixed: "I8",
    _number_used_twice: "I2",
    _number_left_out: "I2",
    _time_goes_back: "I11",
    _host_time_ignored: "I11",
    _acknowledged_before_the_mirror: "I3",
    _acknowledged_before_the_journal: "I4",
    _mirrored_write_lost: "I3",
    _mirrored_and_flushed_write_lost: "I3",
    _mirrored_write_lost_behind_a_reboot: "I4",
    _flushed_write_lost: "I4",
    _stable_write_lost: "I4",
    _killed_daemon_lost_a_write: "I9",
    _stale_read: "I9",
    _invented: "I9",
    _in_the_wrong_place: "I9",
    _refused_and_yet_done: "I9",
    _read_and_then_older: "I9",
    _back_and_forth: "I9",
    _late_after_all: "I9",
    _damaged_image: "I10",
    _damaged_read: "I10",
    _hangs: "I7",
    _answered_too_late: "I7",
    _hangs_after_a_stall: "I7",
    _cut_goes_back: "I11",
    _applied_goes_back: "I11",
    _durable_goes_back: "I11",
    _branch_of_its_own: "I13",
    _pair_again_after_takeover: "I13",
    _never_fenced: "I13",
    _lag_understated: "I14",
    _suspended_for_no_reason: "I14",
    _suspended_at_one_end: "I14",
    _taken_over_while_copying: "I15",
    _taken_over_inconsistent: "I15",
    _writes_after_its_takeover: "I16",
    _secondary_writable: "I16",
    _generation_kept: "I16",
    _daemon_ended: "I17",
    _comes_to_rest_copying: "I19",
    _comes_to_rest_different: "I19",
    _found_something_else: "I20",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__.strip("_"))
def test_mistake_is_found_by_its_invariant(mistake: Callable[[Toy], None]) -> None:
    toy = Toy(mistake not in ALONE)
    mistake(toy)
    assert found(toy) == set(MISTAKES[mistake].split())


def test_what_a_takeover_dropped_is_not_missed_beside_later_host_times() -> None:
    toy = Toy(time_source="host")
    toy.write("v0", 0, host_time=10)
    toy.apply(1)
    toy.write("v0", 0, host_time=20)
    toy.take_over("B")
    toy.write("v1", 0, host_time=30)
    toy.image("B")
    assert check(toy.history) == []


def test_what_a_primary_kept_alone_is_not_missed_when_it_rebooted_before_the_takeover() -> None:
    toy = Toy()
    toy.history.stable = True
    toy.write("v0", 0)
    for group in ("g0", "g1"):
        toy.status("C", group, "primary", "A", "PSUE", reason="link")
    alone = toy.write("v0", 0)
    toy.logs["A"].remove(alone)
    toy.crash("C", "power")
    toy.restart("C")
    toy.take_over("A")
    toy.image("A")
    assert check(toy.history) == []


@pytest.mark.parametrize("acknowledged", [False, True])
def test_what_was_read_at_its_primary_and_never_acknowledged_is_not_promised_of_the_mirror(acknowledged: bool) -> None:
    """The simulator's seed 11000544."""
    toy = Toy()
    toy.history.stable = True
    toy.write("v0", 0)
    alone = toy.submit("v0", 0)
    toy.logs["A"].remove(alone)
    if acknowledged:
        toy.ack(alone)
    toy.crash("C", "power")
    toy.restart("C")
    toy.read("C", "v0")
    toy.take_over("A")
    toy.write("v0", 1)
    toy.image("A")
    assert {violation.invariant for violation in check(toy.history)} == ({"I1", "I4"} if acknowledged else set())


@pytest.mark.parametrize("alone", [False, True])
def test_what_was_flushed_alone_is_not_promised_of_the_mirror(alone: bool) -> None:
    """The simulator's seed 2003171."""
    toy = Toy()
    toy.write("v0", 0)
    if not alone:
        toy.flush()
    for group in ("g0", "g1"):
        toy.status("C", group, "primary", "A", "PSUE", reason="link")
    toy.flush()
    toy.flushed = 0
    toy.crash("A", "power", lose=1)
    toy.restart("A")
    toy.take_over("A")
    toy.image("A")
    assert {violation.invariant for violation in check(toy.history)} == (set() if alone else {"I3"})


def test_what_was_never_flushed_is_not_promised_of_a_mirror_without_power() -> None:
    """The simulator's seed 2004009."""
    toy = Toy()
    toy.write("v0", 0)
    toy.crash("A", "power", lose=1)
    toy.restart("A")
    toy.take_over("A")
    toy.image("A")
    assert check(toy.history) == []


def test_every_invariant_is_judged_or_said_not_to_be() -> None:
    judged = {kind.name for kind in INVARIANTS}
    assert judged | set(NOT_JUDGED) == {f"I{number}" for number in range(1, 21)}
    assert {name for names in MISTAKES.values() for name in names.split()} == judged


def test_waiting_is_no_fault_while_the_disk_hangs() -> None:
    toy = Toy()
    write = toy.submit("v0", 0)
    toy.add(FaultBegun, name="F14 slow", stalls="C")
    toy.now += 100
    toy.add(FaultEnded, name="F14 slow")
    toy.ack(write)
    assert check(toy.history) == []


@given(
    st.integers(1, 1 << 60), st.integers(0, 15), st.integers(1, 4), st.integers(0, 4 * SECTOR - 1), st.integers(0, 7)
)
def test_a_stamp_is_read_where_it_was_made_for_and_nowhere_else(
    serial: int, sector: int, count: int, byte: int, bit: int
) -> None:
    history = History.make(9, {"g": {"v": 16 * SECTOR, "w": 16 * SECTOR}})
    facts, other = history.volumes["v"], history.volumes["w"]
    data = encode(9, facts, serial, sector * SECTOR, count * SECTOR)
    assert decode_untrusted(9, facts, sector * SECTOR, data) == [serial] * count
    for run, volume, offset in ((8, facts, sector), (9, other, sector), (9, facts, sector + 1)):
        assert decode_untrusted(run, volume, offset * SECTOR, data) == [DAMAGED] * count
    broken = bytearray(data)
    byte %= len(data)
    broken[byte] ^= 1 << bit
    shown = decode_untrusted(9, facts, sector * SECTOR, broken)
    assert shown == [DAMAGED if index == byte // SECTOR else serial for index in range(count)]


def test_history_is_read_as_it_was_saved(tmp_path: Path) -> None:
    toy = Toy()
    toy.write("v0", 0, 2, host_time=5)
    toy.flush()
    toy.read("C", "v0")
    toy.rest()
    toy.history.save(tmp_path / "history")
    again = load(tmp_path / "history")
    assert again == toy.history
    assert again.digest() == toy.history.digest()
    toy.add(Acknowledged, serial=1)
    assert again.digest() != toy.history.digest()


def test_images_and_reports_of_one_moment_belong_together() -> None:
    toy = Toy()
    toy.write("v0", 0)
    toy.now += 10
    toy.history.add(Status(toy.now, "B", "g0", "secondary", "PAIR", "A", lag_s=11.0))
    toy.history.add(Image(toy.now, "B", toy.shown("B")))
    assert check(toy.history) == []


def _durable(toy: Toy, site: str, *writes: Submitted) -> None:
    toy.add(Durable, site=site, group="g0", serials=tuple(write.serial for write in writes))


def test_a_flush_needs_both_disks_as_long_as_the_pair_is_whole() -> None:
    for sites, suspended, expected in (
        ("CA", False, set()),
        ("C", False, {"I4"}),
        ("C", True, set()),
        ("A", False, {"I4"}),
    ):
        toy = Toy()
        first = toy.write("v0", 0)
        for site in "CA":
            _durable(toy, site, first)
        second = toy.write("v0", 1)
        for site in sites:
            _durable(toy, site, second)
        if suspended:
            toy.status("C", "g0", "primary", "A", "PSUE", reason="link")
        toy.flush()
        assert found(toy) == expected, (sites, suspended)


def test_fua_needs_its_own_write_only() -> None:
    toy = Toy(paired=False)
    first = toy.write("v0", 0)
    _durable(toy, "C", first)
    toy.write("v0", 1)
    second = toy.submit("v0", 2, fua=True)
    _durable(toy, "C", second)
    toy.ack(second)
    assert found(toy) == set()
    toy.write("v0", 3, fua=True)
    assert found(toy) == {"I4"}


@pytest.mark.parametrize("again", [False, True])
def test_a_flush_speaks_of_what_its_site_has_found_again_after_a_power_loss(again: bool) -> None:
    """The simulator's seed 32010143: the next site showed what its old primary had lost, which was then flushed."""
    toy = Toy()
    first = toy.write("v0", 0)
    _durable(toy, "C", first)
    toy.flush()
    second = toy.write("v0", 1)
    toy.crash("C", "power", lose=1)
    if again:
        toy.journaled("C", second, 2)
    toy.restart("C")
    toy.take_over("A")
    toy.image("A")
    toy.primary = "C"
    toy.flush()
    assert found(toy) == ({"I4"} if again else set())


@pytest.mark.parametrize("again", [False, True])
def test_a_lag_is_measured_against_what_the_primary_has_after_its_power_loss(again: bool) -> None:
    """The simulator's seed 50003174: a mirror had lost a write, and took over without it."""
    toy = Toy()
    first = toy.write("v0", 0)
    toy.apply(1)
    toy.journaled("A", first, 1)
    _durable(toy, "A", first)
    second = toy.submit("v0", 1)
    toy.journaled("A", second, 2)
    toy.crash("A", "power")
    if again:
        toy.journaled("A", second, 2)
    else:
        toy.logs["A"].remove(second)
    toy.restart("A")
    toy.status("C", "g0", "primary", "A", "PSUE", reason="link")
    toy.ack(second)
    toy.take_over("A")
    toy.now += 10
    toy.status("B", "g0", "secondary", "A", "PAIR", lag_s=0.0)
    toy.now -= 0.01
    toy.image("B")
    assert found(toy) == ({"I14"} if again else set())


@pytest.mark.parametrize("confirmed", ["", "v0", "v1"])
def test_flushed_write_may_be_dropped_by_a_takeover_in_doubt_and_by_no_other(confirmed: str) -> None:
    """The simulator's seed 20200576. A mirror in doubt confirms nothing in any of its groups."""
    toy = Toy()
    first = toy.write("v0", 0)
    toy.flush()
    toy.write("v1", 0)
    toy.crash("A", "power", lose=1)
    toy.restart("A")
    if confirmed:
        toy.write(confirmed, 1)
    toy.logs["A"].remove(first)
    toy.take_over("A")
    toy.image("A")
    assert ("I3" in found(toy)) == bool(confirmed)


@pytest.mark.parametrize("ticks", ["lost", "kept", "lost and confirmed"])
def test_flushed_write_may_be_dropped_where_the_ticks_of_another_group_are_lost(ticks: str) -> None:
    """The simulator's seed 32002738: what was lost of a journal its site cannot know."""
    toy = Toy()
    first = toy.write("v0", 0)
    second = toy.write("v1", 0)
    toy.flush()
    toy.journaled("A", second, 1)
    tick = {"kind": 5, "volume": "", "offset": 0, "length": 0, "data_crc": 0, "serial": None}
    toy.journaled("A", second, 2, **tick)
    toy.crash("A", "power")
    toy.journaled("A", second, 3 if ticks == "kept" else 2, **tick, incarnation=2)
    toy.restart("A")
    if ticks == "lost and confirmed":
        toy.write("v1", 1)
        toy.flush()
        toy.crash("A", "power")
        toy.restart("A")
    toy.logs["A"].remove(first)
    toy.take_over("A")
    toy.image("A")
    assert ("I3" in found(toy)) == (ticks != "lost")


def test_end_that_cannot_use_its_group_is_asked_for_no_state() -> None:
    for held in (False, True):
        toy = Toy()
        toy.status("A", "g0", "secondary", "C", "PSUE", reason="link")
        if held:
            toy.add(Held, site="A", group="g0")
        toy.add(Quiet, bound_s=0.0)
        assert found(toy) == (set() if held else {"I14"})
