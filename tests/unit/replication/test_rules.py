"""Small rules of the transfer path that need no connection: ticks, the mirror's time limits, kept records, waits."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.errors import Corrupt, MirrorLost, ReadOnly, RemoteCopyError
from controllerd.model.pair_state import PairState, Role
from controllerd.model.write_time import make_write_time
from controllerd.replication.backoff import Backoff
from controllerd.replication.messages import Ack
from controllerd.replication.mirror import Mirror
from controllerd.replication.pair_record import PairRecord, PairSpec, PairVolume, read_record
from controllerd.replication.settings import Endpoint, ReplicationSettings
from controllerd.replication.ticker import Ticker

# ---- ticks -----------------------------------------------------------------------------


class Ticks:
    """A ticker over groups that only have numbers and times."""

    def __init__(self, source: Any, names: str) -> None:
        self.now = 1000
        self.time = make_write_time(source)
        self.groups: dict[str, Any] = {name: SimpleNamespace(name=name, last_seq=0, last_time=0) for name in names}
        self.ticker = Ticker(self.time, lambda: self.now, self.journal)

    def journal(self, group: Any, time: int) -> None:
        group.last_seq += 1
        group.last_time = time

    def write(self, name: str, carried: int | None = None) -> None:
        group = self.groups[name]
        group.last_seq += 1
        group.last_time = self.time.stamp(self.now, carried, 1)

    def turn(self, wanted: str = "") -> str:
        """One look; returns the groups that got a tick."""
        self.now += 50
        groups = self.ticker.look(self.groups.values(), lambda group: group.name in wanted)
        self.ticker.tick(groups)
        return "".join(group.name for group in groups)

    def rests(self) -> bool:
        """Whether ticks end by themselves."""
        return [self.turn() for _ in range(6)][-2:] == ["", ""]


@pytest.mark.parametrize("source", ["clock", "host"])
def test_all_groups_get_past_the_newest_write_and_then_rest(source: str) -> None:
    ticks = Ticks(source, "gh")
    ticks.turn()
    ticks.write("g", 500)
    newest = ticks.groups["g"].last_time
    for _ in range(4):
        ticks.turn()
    assert all(group.last_time > newest for group in ticks.groups.values())
    assert ticks.groups["g"].last_time == ticks.groups["h"].last_time
    assert ticks.rests()


def test_busy_group_gets_no_ticks_with_a_clock_but_does_without_one() -> None:
    for source, expected in (("clock", "h"), ("host", "gh")):
        ticks = Ticks(source, "gh")
        ticks.turn()
        found = ""
        for _ in range(3):
            ticks.write("g")
            found = ticks.turn()
        assert found == expected


@pytest.mark.parametrize("source", ["clock", "host"])
def test_ticks_of_an_earlier_primary_are_passed_once(source: str) -> None:
    """After a takeover the groups' last records are its ticks. The simulator's seed 2001388 never came to rest."""
    ticks = Ticks(source, "gh")
    for group in ticks.groups.values():
        ticks.journal(group, ticks.time.pass_on_tick(5000, ticks.now))
    for _ in range(4):
        ticks.turn()
    assert min(group.last_time for group in ticks.groups.values()) > 5000
    assert ticks.rests()


def test_numbers_need_no_ticks_unless_the_secondary_asks() -> None:
    ticks = Ticks("sequence", "gh")
    ticks.write("g")
    assert [ticks.turn() for _ in range(3)] == ["", "", ""]
    assert ticks.turn("h") == "h"
    assert ticks.groups["h"].last_time == 2


def test_secondary_can_ask_an_idle_controller_for_a_tick() -> None:
    ticks = Ticks("clock", "gh")
    assert ticks.rests()
    assert ticks.turn("g") == "gh"


# ---- the mirror's time limits --------------------------------------------------------------


class FakeGroup:
    """What a mirror needs of a group."""

    def __init__(self) -> None:
        self.name = "g"
        self.last_seq = 10
        self.waiting = 0
        self.write_error: RemoteCopyError | None = None
        self.mirrored = False
        self.failed: list[RemoteCopyError] = []
        self.mirror_flush_wanted: Any = None

    def set_mirror(self, required: bool, acked: int = 0, durable: int = 0) -> None:
        self.mirrored = required

    def mirror_progress(self, acked: int, durable: int) -> None:
        pass

    def refuse_writes(self, error: RemoteCopyError | None) -> None:
        self.write_error = error

    def fail_waiting(self, error: RemoteCopyError) -> None:
        self.failed.append(error)


def make_mirror(group: Any, losses: list[str], *, block: bool = False, now: list[float] | None = None) -> Mirror:
    clock = now or [0.0]
    mirror = Mirror(
        group, timeout_s=5.0, block=block, send_sync=lambda _: None, on_loss=losses.append, now_s=lambda: clock[0]
    )
    mirror.start(10)
    return mirror


def test_idle_mirror_is_never_lost() -> None:
    losses: list[str] = []
    mirror = make_mirror(FakeGroup(), losses)
    for now in range(100):
        mirror.check(float(now))
    assert losses == []


def test_mirror_is_not_lost_for_records_that_no_host_waits_for() -> None:
    group, losses = FakeGroup(), list[str]()
    mirror = make_mirror(group, losses)
    group.last_seq = 12  # ticks that were under way when the link was cut
    for now in range(100):
        mirror.check(float(now))
    assert losses == []
    group.last_seq, group.waiting = 13, 1
    mirror.check(100.0)
    mirror.check(105.1)
    assert len(losses) == 1


def test_mirror_is_lost_when_a_write_waits_too_long_and_not_before() -> None:
    group, losses = FakeGroup(), list[str]()
    mirror = make_mirror(group, losses)
    group.last_seq, group.waiting = 12, 1
    mirror.check(100.0)
    mirror.check(105.0)
    assert losses == []
    mirror.check(105.1)
    assert len(losses) == 1


def test_slow_mirror_is_lost_by_its_oldest_write_although_it_progresses() -> None:
    group, losses = FakeGroup(), list[str]()
    mirror = make_mirror(group, losses)
    group.waiting = 1
    for step in range(60):
        now = step / 10
        group.last_seq += 10
        mirror.check(now)
        mirror.progress(Ack(10 + step, 10, 10, 0, 0))
    assert losses


def test_flush_that_is_not_confirmed_loses_the_mirror() -> None:
    group, losses, now = FakeGroup(), list[str](), [50.0]
    mirror = make_mirror(group, losses, now=now)
    group.mirror_flush_wanted(10)
    mirror.check(55.0)
    mirror.progress(Ack(10, 9, 9, 0, 0))
    mirror.check(55.5)
    assert len(losses) == 1
    mirror.progress(Ack(10, 10, 10, 0, 0))
    mirror.check(99.0)
    assert len(losses) == 1


def test_blocked_group_takes_writes_again_only_when_caught_up() -> None:
    group, losses = FakeGroup(), list[str]()
    mirror = make_mirror(group, losses, block=True)
    group.last_seq, group.waiting = 20, 1
    mirror.check(0.0)
    mirror.check(6.0)
    assert isinstance(group.write_error, MirrorLost)
    assert group.failed
    mirror.progress(Ack(19, 19, 19, 0, 0))
    assert mirror.blocked
    mirror.progress(Ack(20, 19, 19, 0, 0))
    assert group.write_error is None


def test_flush_on_a_blocked_group_is_answered_with_an_error() -> None:
    group, losses = FakeGroup(), list[str]()
    mirror = make_mirror(group, losses, block=True)
    group.last_seq = 20
    mirror.check(0.0)
    mirror.check(6.0)
    group.failed.clear()
    mirror.check(7.0)
    assert not group.failed
    group.waiting = 1
    group.mirror_flush_wanted(20)
    mirror.check(8.0)
    assert [type(error) for error in group.failed] == [MirrorLost]
    # What a flush waited for while blocked does not count against the time after it.
    group.waiting = 0
    mirror.progress(Ack(20, 20, 20, 0, 0))
    mirror.check(20.0)
    assert len(losses) == 1


def test_fence_that_came_while_blocked_stays() -> None:
    group, losses = FakeGroup(), list[str]()
    mirror = make_mirror(group, losses, block=True)
    group.last_seq, group.waiting = 20, 1
    mirror.check(0.0)
    mirror.check(6.0)
    group.write_error = ReadOnly("taken over")
    mirror.stop()
    assert isinstance(group.write_error, ReadOnly)
    assert not group.mirrored


# ---- kept records ------------------------------------------------------------------------------


def make_record() -> PairRecord:
    spec = PairSpec("A", "g", "B", "h", (PairVolume("v", "w", 7, 4096),), mode="sync", sync_timeout_s=2.5)
    return PairRecord(spec, Role.SECONDARY, PairState.PSUE, 5, 4, "why", runs=[(1, 2), (9, 3)], fence={"cut_seq": 4})


def test_record_is_read_back_as_kept() -> None:
    record = make_record()
    assert read_record("p", record.document()) == record
    assert record.peer == "A"
    assert record.group == "h"
    assert record.peer_group == "g"


def test_damaged_record_is_reported_not_guessed() -> None:
    changes: list[dict[str, Any]] = [{"state": "NOPE"}, {"spec": {}}, {"unknown": 1}, {"runs": 5}]
    for change in changes:
        with pytest.raises(Corrupt, match="pair p"):
            read_record("p", {**make_record().document(), **change})


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), max_size=60))
def test_newest_run_of_a_number_is_remembered(runs: list[tuple[int, int]]) -> None:
    record = make_record()
    record.runs = []
    model: dict[int, int] = {}
    for first, incarnation in runs:
        before = model.get(first - 1, 0)
        if before > incarnation:  # a run that was over
            with pytest.raises(Corrupt, match=f"after run {before}"):
                record.note_run(first, incarnation)
            continue
        record.note_run(first, incarnation)
        model = {number: run for number, run in model.items() if number < first}
        model |= dict.fromkeys(range(first, 60), incarnation)
        assert record.incarnation_of(59) == incarnation
        assert record.incarnation_of(first) == incarnation
        if len(record.runs) < 16:
            assert all(record.incarnation_of(number) == run for number, run in model.items())


# ---- settings and waits ----------------------------------------------------------------------------


def test_settings_without_any_authentication_are_refused() -> None:
    with pytest.raises(ValueError, match="shared key or mutual TLS"):
        ReplicationSettings("A", 1, listen=Endpoint("127.0.0.1", 0))


def test_waits_grow_and_are_bounded_and_spread() -> None:
    backoff = Backoff(0.05, 2.0, random.Random(1))
    waits = [backoff.next_s() for _ in range(20)]
    assert 0.025 <= waits[0] <= 0.05
    assert all(1.0 <= wait <= 2.0 for wait in waits[8:])
    assert len(set(waits)) == 20
    backoff.reset()
    assert backoff.next_s() <= 0.05
