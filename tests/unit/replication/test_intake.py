"""What an intake says of its position, on a group of which only figures matter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from controllerd.model.records import Kind
from controllerd.replication.intake import AsyncIntake, SyncIntake
from controllerd.replication.ports import GroupPort
from controllerd.storage.pending import Entry


def intake_of(kind: type[AsyncIntake] | type[SyncIntake], group: GroupPort) -> AsyncIntake | SyncIntake:
    events = cast(Any, None)
    return AsyncIntake(group, events, 1 << 20) if kind is AsyncIntake else SyncIntake(group, events, 0.1)


@pytest.mark.parametrize("kind", [AsyncIntake, SyncIntake])
def test_applied_never_goes_back_when_a_write_follows_ticks(kind: type[AsyncIntake] | type[SyncIntake]) -> None:
    def entry(sequence: int, record: Kind) -> Entry:
        return Entry(sequence, sequence, int(record), 0, 0, 0, sequence, None)

    ticks = [entry(3, Kind.TICK), entry(4, Kind.TICK)]
    facts = SimpleNamespace(pending=ticks, last_seq=4, durable_seq=4, applied_seq=2, last_origin=4)
    facts.applied_mark = (2, 2, 2)
    intake = intake_of(kind, cast(GroupPort, facts))
    assert intake.applied_seq == 4  # ticks show nothing, applied or not
    facts.pending = [*ticks, entry(5, Kind.WRITE), entry(6, Kind.TICK)]
    facts.last_seq = facts.durable_seq = facts.last_origin = 6
    intake.begin_session()
    assert intake.applied_seq == 4


def test_only_what_is_durable_reaches_the_apply_loop() -> None:
    """Else a power cut could take a record away that a visible one of another group needs (I5)."""
    arrived: list[Any] = []
    events = SimpleNamespace(arrived=arrived.append)
    group = SimpleNamespace(last_seq=6, durable_seq=4, pending=[])
    intake = AsyncIntake(cast(GroupPort, group), cast(Any, events), 1 << 20)
    for last in (4, 6):
        intake._undurable.append(cast(Any, SimpleNamespace(last=last, raw=b"x", arrivals=[last])))
    intake.settle()
    assert arrived == [[4]]
    group.durable_seq = 6
    intake.settle()
    assert arrived == [[4], [6]]
