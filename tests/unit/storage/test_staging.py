"""Staging: what is refused leaves nothing behind, who has to wait is woken, and what the synchronous peer sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from controllerd.model.errors import BadOrder, Corrupt, NoSpace, ReadOnly
from controllerd.model.pair_state import Role
from controllerd.model.records import MAX_DATA, Flag, Kind, Record
from controllerd.storage.group import Group
from controllerd.storage.system import StorageSystem
from tests.records import iterate_untrusted
from tests.simulation.disk import Loss
from tests.simulation.upstream import stage_from_upstream
from tests.unit.storage.helpers import SIZE, content, live, make_machine, put

MIB = 1 << 20
NOW = 1_800_000_000_000_000_000
"""Later than the simulated clock, so that the upstream time decides."""


def footprint(group: Group) -> tuple[int, int, int, int, bool]:
    """What a refused write must not change."""
    group.commit()  # journals what was staged, if anything was
    return group.last_seq, group.journal.last, group.journal.used_bytes, group.last_origin, group.accepting


def records(group: Group) -> list[Record]:
    found = group.read_journal(1, 1 << 30)
    if found is None:
        return []
    return [record for _, record in iterate_untrusted(memoryview(b"".join(found.buffers)))]


# ---- no space --------------------------------------------------------------------------


def test_full_pool_refuses_before_anything_is_journaled() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        group = system.groups["g0"]
        volume, _ = system.create_volume("big", 8 * MIB, pool="p", group="g0")
        for offset in range(0, 2 * MIB, 65536):
            put(system, "big", offset, b"a" * 65536)
        edge = memoryview(b"b" * 65536)
        refused: list[Callable[[], object]] = [
            lambda: group.stage_write(volume, 2 * MIB, edge),
            lambda: group.stage_write(volume, 2 * MIB - 4096, edge),
            lambda: group.stage_write(volume, 2 * MIB - MAX_DATA, memoryview(b"b" * (MAX_DATA + 4096))),
            lambda: group.stage_zeroes(volume, 2 * MIB, 65536, trim=False, no_hole=True),
            lambda: group.stage_write(system.volume("v0"), 0, edge),
        ]
        before = footprint(group)
        for order in refused:
            with pytest.raises(NoSpace, match="no free region"):
                order()
            assert footprint(group) == before
        assert await content(system, "big") == b"a" * 2 * MIB + bytes(6 * MIB)
        put(system, "big", 4096, b"c" * 100)  # where there is space, writes go on

        group.stage_zeroes(volume, 0, MIB, trim=True)
        group.commit()
        with pytest.raises(NoSpace):  # until a checkpoint a crash could bring the old map back
            put(system, "v0", 0, b"d" * 4096)
        await system.checkpointer.checkpoint()
        put(system, "v0", 0, b"d" * 4096)
        assert (await content(system, "v0"))[:8192] == b"d" * 4096 + bytes(4096)

    async def after(system: StorageSystem) -> None:
        assert await content(system, "big") == bytes(MIB) + b"a" * MIB + bytes(6 * MIB)

    live(machine, scenario)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


def test_full_journal_refuses_before_anything_is_staged_and_takes_writes_again() -> None:
    machine = make_machine(cache=64 * MIB)

    async def scenario(system: StorageSystem) -> None:
        group, volume = system.groups["g0"], system.volume("v0")
        group.set_retention("peer", 0)
        pressed: list[str] = []
        on_pressure, group.on_pressure = group.on_pressure, lambda: pressed.append("pressure")
        written = 0
        while group.accepting:
            written = put(system, "v0", 0, bytes([written % 256]) * MIB)
        assert pressed
        last = bytes([(written - 1) % 256]) * MIB
        woken: list[int] = []
        group.when_accepting(lambda: woken.append(group.last_seq))
        with pytest.raises(NoSpace, match="has no room"):  # noqa: PT012 - it is not known which one fails
            while True:  # who does not wait: there is room for the largest request, then none
                written = put(system, "v0", 0, last)
        before = footprint(group)
        large = memoryview(bytes(MIB))
        orders: list[Callable[[], object]] = [
            lambda: group.stage_write(volume, 0, large),
            lambda: stage_from_upstream(group, Record(Kind.WRITE, 0, 1, 1, volume.key, MIB, 9, NOW, 0, 0, 0, 0, large)),
        ]
        for order in orders:
            with pytest.raises(NoSpace):
                order()
            assert footprint(group) == before
        assert (await content(system, "v0")) == last
        assert group.last_seq == written
        assert group.overflowing is False, "nothing was checkpointed that a consumer holds back"
        assert not woken

        group.on_pressure = on_pressure
        group.set_retention("peer", None)
        await system.checkpointer.checkpoint()
        assert woken == [written]
        put(system, "v0", 0, b"e" * 4096)
        assert woken == [written], "woken once"

    live(machine, scenario)
    machine.destroy()


# ---- back-pressure -----------------------------------------------------------------------


def accepts(group: Group) -> bool:
    return group.accepting


def test_full_cache_lets_hosts_wait_until_it_was_destaged() -> None:
    machine = make_machine(groups=2, cache=MIB)

    async def scenario(system: StorageSystem) -> None:
        first, second = system.groups["g0"], system.groups["g1"]
        woken: list[str] = []
        first.when_accepting(lambda: woken.append("at once"))
        assert woken == ["at once"]
        machine.disk.sync_seconds = 0.5  # the destage waits for the journal meanwhile
        while accepts(first):
            put(system, "v0", 0, b"x" * 65536)
        second.update_accepting()
        assert not accepts(second), "the memory is the whole controller's"
        for name, group in (("first", first), ("second", second)):
            group.when_accepting(lambda name=name: woken.append(name))  # type: ignore[misc]
        assert woken == ["at once"]
        await asyncio.sleep(5)
        assert sorted(woken) == ["at once", "first", "second"]
        assert accepts(first)
        assert accepts(second)
        assert system.budget.used == 0

    live(machine, scenario)
    machine.destroy()


def test_writes_that_may_not_be_are_refused_whole() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        group, volume = system.groups["g0"], system.volume("v0")
        before = footprint(group)
        with pytest.raises(BadOrder):
            group.stage_write(volume, 0, memoryview(b""))
        await system.change_role(group, Role.SECONDARY)
        orders: list[Callable[[], object]] = [
            lambda: group.stage_write(volume, 0, memoryview(b"x")),
            lambda: group.stage_zeroes(volume, 0, 4096, trim=True),
        ]
        for order in orders:
            with pytest.raises(ReadOnly, match="is a secondary"):
                order()
        assert footprint(group) == before

    live(machine, scenario)
    machine.destroy()


# ---- from upstream -----------------------------------------------------------------------


def upstream(origin: int, *, time: int = NOW, key: int = 1, offset: int = 0, data: bytes = b"u" * 512) -> Record:
    return Record(
        Kind.WRITE, int(Flag.HOST_TIME), 9, 9, key, len(data), origin, time, origin, offset, 0, 0, memoryview(data)
    )


def as_secondary(scenario: Callable[[StorageSystem, Group], object]) -> None:
    """Run a scenario on a synchronous secondary."""
    machine = make_machine()

    async def life(system: StorageSystem) -> None:
        group = system.groups["g0"]
        await system.restart_group(group, role=Role.SECONDARY, generation=4, last_seq=0)
        scenario(system, group)

    live(machine, life)
    machine.destroy()


def test_upstream_records_get_own_numbers_and_keep_origin_time_and_flags() -> None:
    def scenario(system: StorageSystem, group: Group) -> None:
        key = system.volume("v0").key
        assert stage_from_upstream(group, upstream(100, key=key, time=NOW)) == 1
        assert stage_from_upstream(group, upstream(101, key=key, time=NOW + 5)) == 2
        group.commit()
        assert stage_from_upstream(group, upstream(105, key=key, time=NOW + 5)) == 3, "upstream's gaps are none of ours"
        tick = Record(Kind.TICK, 0, 9, 9, 0, 0, 106, NOW + 9, 0, 0, 0, 0, memoryview(b""))
        assert stage_from_upstream(group, tick) == 4
        group.commit()
        found = [(each.sequence, each.origin, each.time, each.flags) for each in records(group)]
        flag = int(Flag.HOST_TIME)
        assert found == [(1, 100, NOW, flag), (2, 101, NOW + 5, flag), (3, 105, NOW + 6, flag), (4, 106, NOW + 9, 0)]
        assert {(each.generation, each.incarnation) for each in records(group)} == {(4, group.incarnation)}
        assert [entry.origin for entry in group.pending] == [100, 101, 105, 106]
        assert group.applied_seq == 0, "pending until the apply loop says"

    as_secondary(scenario)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": 999_999}, "which the group does not have"),
        ({"offset": SIZE}, "beyond the end"),
        ({"offset": SIZE - 511}, "beyond the end"),
        ({"offset": (1 << 64) - 1}, "beyond the end"),
    ],
)
def test_upstream_records_that_do_not_fit_stage_nothing(changes: dict[str, int], reason: str) -> None:
    def scenario(system: StorageSystem, group: Group) -> None:
        key = system.volume("v0").key
        stage_from_upstream(group, upstream(1, key=key))
        before = footprint(group)
        with pytest.raises(Corrupt, match=reason):
            stage_from_upstream(group, upstream(2, **{"key": key, **changes}))  # type: ignore[arg-type]
        assert footprint(group) == before
        assert stage_from_upstream(group, upstream(2, key=key, offset=SIZE - 512)) == 2, "the right one is no duplicate"

    as_secondary(scenario)


def test_times_from_upstream_never_go_back_here() -> None:
    def scenario(system: StorageSystem, group: Group) -> None:
        key = system.volume("v0").key
        for origin, time in enumerate((NOW, NOW - 7, NOW, NOW + 3), 1):
            stage_from_upstream(group, upstream(origin, key=key, time=time))
        group.commit()
        assert [each.time for each in records(group)] == [NOW, NOW + 1, NOW + 2, NOW + 3]
        assert system.write_time.clamped == 2
        assert group.last_time == NOW + 3

    as_secondary(scenario)
