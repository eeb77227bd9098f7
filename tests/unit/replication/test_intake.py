"""What an intake says of its position, on a group of which only figures matter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from controllerd.model.errors import Busy, Corrupt, NoSpace, RemoteCopyError
from controllerd.model.records import Kind, encode_header
from controllerd.replication.frames import Frame, FrameType
from controllerd.replication.intake import AsyncIntake, SyncIntake
from controllerd.replication.ports import GroupPort
from controllerd.storage.pending import Entry


def intake_of(kind: type[AsyncIntake] | type[SyncIntake], group: GroupPort) -> AsyncIntake | SyncIntake:
    events = cast(Any, None)
    return AsyncIntake(group, events, 1 << 20) if kind is AsyncIntake else SyncIntake(group, events, 0.1)


def tick_frame(number: int) -> Frame:
    record = encode_header(Kind.TICK, sequence=number, time=number, generation=1, incarnation=1)
    return Frame(int(FrameType.DATA), 0, 1, number, 1, memoryview(record))


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


async def test_frames_that_came_together_are_journaled_with_one_write_and_answered_once() -> None:
    staged: list[int] = []
    told: list[str] = []

    def stage_upstream(entries: list[Entry], seals: object, arrivals: list[tuple[int, int, int]]) -> None:
        staged.extend(entry.sequence for entry in entries)
        arrivals += [(entry.time, entry.sequence, entry.kind) for entry in entries]
        group.last_origin = staged[-1]

    group = SimpleNamespace(last_origin=0, durability="cache", stage_upstream=stage_upstream)
    group.commit = lambda: told.append(f"commit through {group.last_origin}")
    events = SimpleNamespace(
        received_run=lambda *_: None, stalled=lambda _: None, progressed=lambda: told.append("progressed")
    )
    intake = SyncIntake(cast(GroupPort, group), cast(Any, events), 60.0)
    for number in (1, 2, 3):
        intake.take_untrusted(tick_frame(number), 1)
    assert told == []
    intake.journal()
    assert staged == [1, 2, 3]
    assert told == ["commit through 3", "progressed"]
    intake.journal()
    assert len(told) == 2, "there was nothing to journal"
    intake.close()


@pytest.mark.parametrize("refusal", [Busy("full"), NoSpace("full"), Corrupt("no such volume")], ids=repr)
async def test_what_came_before_a_frame_that_is_refused_is_made_durable(refusal: RemoteCopyError) -> None:
    """A full journal could wait for ever: the records that let others be shown, and leave it, were never synced."""

    def append_received(raw: object, entries: list[Entry]) -> None:
        if entries[0].sequence == 3:
            raise refusal
        group.last_seq = entries[-1].sequence

    synced: list[int] = []
    group = SimpleNamespace(last_seq=0, durable_seq=0, append_received=append_received)
    group.when_durable = lambda number, _then: synced.append(number)
    refused: list[RemoteCopyError] = []
    events = SimpleNamespace(received_run=lambda *_: None, stalled=refused.append, failed=refused.append)
    intake = AsyncIntake(cast(GroupPort, group), cast(Any, events), 1 << 20)
    for number in (1, 2, 3):
        intake.take_untrusted(tick_frame(number), 1)
    intake.journal()
    intake.close()
    assert refused == [refusal]
    assert synced == [2]
