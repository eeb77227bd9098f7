"""The apply loop over groups without disks: what it shows is consistent, and what stops it is temporary."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from controllerd.model.errors import BadOrder, Corrupt, DiskFailed, NoSpace, RemoteCopyError
from controllerd.model.records import Kind
from controllerd.replication import applier as applier_module
from controllerd.replication.applier import DomainApplier
from controllerd.storage.pending import Entry


class FakeBudget:
    def __init__(self) -> None:
        self.listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)

    def ignore(self, listener: Callable[[], None]) -> None:
        self.listeners.remove(listener)


class FakeGroup:
    """A secondary group whose records are (number, time, kind)."""

    def __init__(self, name: str, budget: FakeBudget, shown: list[tuple[str, int]]) -> None:
        self.name = name
        self.budget = budget
        self.pending: deque[Entry] = deque()
        self.applied_seq = self.applied_time = self.last_seq = self.durable_seq = 0
        self.apply_room = True
        self.apply_error: RemoteCopyError | None = None
        self.error: RemoteCopyError | None = None
        self.readable = True
        self._shown = shown

    def close_reads(self) -> None:
        self.readable = False

    def open_reads(self) -> None:
        self.readable = True

    def apply_through(self, sequence: int) -> int:
        count = 0
        while self.pending and self.pending[0].sequence <= sequence:
            if self.error is not None:
                raise self.error
            entry = self.pending.popleft()
            self.applied_seq, self.applied_time = entry.sequence, entry.time
            if entry.kind == Kind.WRITE:
                self._shown.append((self.name, entry.time))
            count += 1
        return count


class Domain:
    """An apply loop with its groups; ``shown`` lists the writes in the order they became visible."""

    def __init__(self, names: str, *, order: Any = "time", mode: Any = "time", base: int = 0) -> None:
        self.now = 10**9
        self.shown: list[tuple[str, int]] = []
        self.events: list[str] = []
        self.budget = FakeBudget()
        self.loop = DomainApplier(
            "d", order=order, slice_records=4, report=lambda event, facts: self.events.append(event), clock=self.clock
        )
        self.groups: dict[str, Any] = {name: FakeGroup(name, self.budget, self.shown) for name in names}
        for group in self.groups.values():
            self.loop.add(group, base, mode)

    def clock(self) -> int:
        return self.now

    def arrive(self, name: str, *times: int, kind: Kind = Kind.WRITE) -> None:
        group = self.groups[name]
        records = []
        for time in times:
            group.last_seq += 1
            group.pending.append(Entry(group.last_seq, time, kind, 1, 0, 1, 0, None))
            records.append((time, group.last_seq, int(kind)))
        group.durable_seq = group.last_seq
        self.loop.arrived(name, records)

    async def settle(self) -> list[int]:
        await self.loop.settle()
        return [time for _, time in self.shown]


async def test_only_what_is_older_than_every_group_is_shown() -> None:
    domain = Domain("gh")
    domain.arrive("g", *range(1, 20))
    assert await domain.settle() == []
    domain.arrive("h", 10)
    assert await domain.settle() == list(range(1, 10))
    domain.arrive("h", 30, kind=Kind.TICK)
    assert sorted(await domain.settle()) == sorted([*range(1, 19), 10])
    holder = domain.loop.holder()
    assert holder is not None
    assert (holder.group, holder.time) == ("g", 19)


async def test_slices_leave_the_loop_free() -> None:
    domain = Domain("g")
    domain.arrive("g", *range(1, 100))
    turns = 0
    while len(domain.shown) < 98:
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10


async def test_full_cache_stops_applying_until_the_budget_calls() -> None:
    domain = Domain("g")
    domain.groups["g"].apply_room = False
    domain.arrive("g", 1, 2, 3)
    assert await domain.settle() == []
    domain.groups["g"].apply_room = True
    for listener in list(domain.budget.listeners):
        listener()
    await asyncio.sleep(0)
    assert domain.shown == [("g", 1), ("g", 2)]


async def test_pool_without_space_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applier_module, "RETRY_S", 0.001)
    domain = Domain("g")
    domain.groups["g"].error = NoSpace("full")
    domain.arrive("g", 1, 2, 3)
    assert await domain.settle() == []
    assert domain.loop.fault == "full"
    domain.groups["g"].error = None
    async with asyncio.timeout(5):
        while not domain.shown:  # noqa: ASYNC110  # the loop's own timer is what is waited for
            await asyncio.sleep(0.001)
    assert not domain.loop.fault
    assert domain.events == ["apply-stopped", "apply-resumed"]


@pytest.mark.parametrize("order", ["time", "sequence"])
async def test_nobody_reads_half_a_plan(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal of one group cannot be read when another's part is shown. The simulator's seed 2001784."""
    monkeypatch.setattr(applier_module, "RETRY_S", 0.01)
    domain = Domain("gh", order=order)
    domain.groups["h"].error = NoSpace("not before anything is shown")
    domain.arrive("g", 9)
    domain.arrive("h", 1, 9)
    await domain.settle()
    domain.groups["h"].error = None
    await domain.settle()
    assert all(group.readable for group in domain.groups.values())
    domain.arrive("g", 10, 30)
    domain.arrive("h", 11, 30)
    domain.groups["h"].error = Corrupt("the journal cannot be read")
    await domain.settle()
    assert domain.groups["g"].applied_seq > 0
    assert not any(group.readable for group in domain.groups.values())
    domain.groups["h"].error = None
    await asyncio.sleep(0.05)
    assert all(group.readable for group in domain.groups.values())
    assert domain.loop.fault is None


@pytest.mark.parametrize("full", [False, True])
async def test_what_a_run_before_showed_in_part_is_not_read(full: bool) -> None:
    """The simulator's seed 3000119: recovery had filled the cache."""
    domain = Domain("gh")
    domain.groups["g"].error = None if full else NoSpace("the rest of the plan cannot be shown")
    domain.groups["g"].apply_room = not full
    domain.arrive("g", 1, 9)
    domain.arrive("h", 9)
    await domain.settle()
    assert not domain.groups["h"].readable
    domain.loop.remove("g")
    assert domain.groups["g"].readable


async def test_numbers_are_applied_without_leaving_one_out() -> None:
    domain = Domain("gh", mode="sequence")
    domain.arrive("g", 1, 3, 4)
    assert await domain.settle() == [1]
    domain.arrive("h", 2)
    assert await domain.settle() == [1, 2, 3, 4]


async def test_number_that_nobody_can_bring_any_more_is_passed() -> None:
    domain = Domain("gh", mode="sequence")
    domain.arrive("g", 1, 5)
    domain.arrive("h", 2)
    assert await domain.settle() == [1, 2]
    assert not domain.loop.tick_wanted("h")  # it has only just come to a stand
    domain.now += 10**9
    assert domain.loop.tick_wanted("h")
    assert not domain.loop.tick_wanted("g")
    domain.arrive("h", 6, kind=Kind.TICK)
    assert await domain.settle() == [1, 2, 5]


def _restarted(before: Domain, names: str, base: int = 0) -> Domain:
    """The domain after a restart: the groups are taken in one after the other."""
    after = Domain("", mode="sequence")
    for name in names:
        after.groups[name] = before.groups[name]
        after.groups[name].budget = after.budget
        after.loop.add(after.groups[name], base, "sequence")
    return after


@pytest.mark.parametrize("names", ["gh", "hg"])
async def test_line_of_numbers_is_where_it_was_after_a_restart(names: str) -> None:
    """An idle group would otherwise hold the others until it brings something. The simulator's seed 2000651."""
    before = Domain("gh", mode="sequence")
    before.arrive("g", 1)
    before.arrive("h", 2, 3)
    await before.settle()
    after = _restarted(before, names)
    assert after.loop.cut_time == 4
    after.arrive("h", 4)
    assert await after.settle() == []  # `shown` is that of the first life
    assert after.groups["h"].applied_time == 4


@pytest.mark.parametrize("names", ["ghi", "ihg"])
@pytest.mark.parametrize("settled", [False, True])
async def test_numbers_that_one_group_has_shown_are_not_waited_for_in_others(names: str, settled: bool) -> None:
    """Recovery shows what the disks may have, of each group another part. The simulator's seed 3000119."""
    before = Domain("ghi", mode="sequence")
    before.arrive("g", 1, 2)
    before.arrive("h", 3, 4, 6, 8)
    before.arrive("i", 5, 7)
    before.groups["h"].apply_through(2)
    before.groups["i"].apply_through(1)
    after = _restarted(before, names)
    if settled:
        await after.settle()
        assert after.loop.cut_time == 9
        after.arrive("g", 9)
        await after.settle()
    final = after.loop.final_plan()
    assert final.dropped == {}
    assert final.cut_time == (10 if settled else 9)


@pytest.mark.parametrize("names", ["gh", "hg"])
async def test_line_of_numbers_waits_for_what_is_on_its_way_when_a_pair_is_new(names: str) -> None:
    before = Domain("g", mode="sequence")
    before.arrive("g", 1, 2)
    await before.settle()
    after = Domain("", mode="sequence")
    after.groups = {"g": before.groups["g"], "h": FakeGroup("h", after.budget, after.shown)}
    after.groups["h"].applied_time = 9  # the base of the new pair: 3 to 9 went to g, and have not arrived
    for name in names:
        after.groups[name].budget = after.budget
        after.loop.add(after.groups[name], 9 if name == "h" else 0, "sequence")
    after.arrive("g", *range(3, 10))
    after.arrive("h", 10)
    await after.settle()
    assert after.loop.fault is None
    assert after.loop.cut_time == 11


async def test_line_of_numbers_stays_when_the_group_that_was_ahead_leaves() -> None:
    domain = Domain("gh", mode="sequence")
    domain.arrive("g", 1)
    domain.arrive("h", 2, 3)
    await domain.settle()
    domain.loop.remove("h")
    assert domain.loop.cut_time == 4


async def test_ticks_are_asked_of_the_holder_and_only_for_writes() -> None:
    domain = Domain("gh")
    domain.arrive("g", 5, kind=Kind.TICK)
    await domain.settle()
    assert not domain.loop.tick_wanted("h")
    domain.arrive("g", 7)
    await domain.settle()
    assert domain.loop.tick_wanted("h")
    assert not domain.loop.tick_wanted("g")
    domain.groups["h"].last_seq += 1  # something is here and not yet durable
    assert not domain.loop.tick_wanted("h")


async def test_group_that_leaves_holds_nobody_back() -> None:
    domain = Domain("gh")
    domain.arrive("g", 1, 2, 3)
    assert await domain.settle() == []
    domain.loop.remove("h")
    assert await domain.settle() == [1, 2]
    assert len(domain.budget.listeners) == 1


async def test_line_begins_at_the_base_of_a_new_group() -> None:
    domain = Domain("g")
    domain.arrive("g", 1, 2, 30)
    assert await domain.settle() == [1, 2]
    late: Any = FakeGroup("h", domain.budget, domain.shown)
    domain.groups["h"] = late
    domain.loop.add(late, 20, "time")
    domain.arrive("g", 40)
    assert await domain.settle() == [1, 2]
    domain.arrive("h", 35)
    assert await domain.settle() == [1, 2, 30]


async def test_kinds_of_time_do_not_mix() -> None:
    domain = Domain("g")
    with pytest.raises(BadOrder, match="choose another domain"):
        domain.loop.add(FakeGroup("h", domain.budget, []), 0, "sequence")  # type: ignore[arg-type]
    assert domain.loop.groups == ["g"]


async def test_frozen_domain_shows_nothing_more() -> None:
    domain = Domain("gh")
    domain.loop.freeze()
    domain.arrive("g", 1, 2)
    domain.arrive("h", 3)
    await asyncio.sleep(0)
    assert domain.shown == []
    plan = domain.loop.final_plan()
    assert plan.cut_seqs == {"g": 2, "h": 0}
    domain.loop.thaw()
    assert await domain.settle() == [1]


async def test_restart_takes_in_what_is_pending() -> None:
    domain = Domain("gh")
    domain.arrive("g", 1, 4)
    domain.arrive("h", 2, 6)
    again = DomainApplier("d", order="time", slice_records=4, report=lambda *_: None, clock=domain.clock)
    for group in domain.groups.values():
        again.add(group, 0, "time")
    await again.settle()
    assert domain.shown == [("g", 1), ("h", 2)]


async def test_group_whose_disk_failed_holds_its_domain_and_says_why() -> None:
    domain = Domain("gh")
    domain.arrive("g", *range(1, 10))
    domain.arrive("h", 5)
    domain.groups["h"].apply_error = DiskFailed("disk d: broken")
    assert await domain.settle() == []
    assert domain.loop.fault == "disk d: broken"
    domain.groups["h"].apply_error = None
    assert await domain.settle() == [1, 2, 3, 4]
    assert domain.events == ["apply-stopped", "apply-resumed"]
    domain.loop.freeze()
