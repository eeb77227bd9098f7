"""Recovery of one group: read its journal and redo what the last checkpoint lacks.

Owns: the order of recovery, and destaging in between when the journal holds more
than the cache may.
Never: opens a group whose journal has a hole below its durable end; such a group is
held: its volumes are neither readable nor writable until the operator decides (I8).
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import Generator

from controllerd.model.errors import DiskFailed, JournalFailed, RemoteCopyError
from controllerd.model.pair_state import Role
from controllerd.model.records import Kind, Record
from controllerd.model.write_time import MAX_HEARD
from controllerd.storage.destage import write_layers_now
from controllerd.storage.group import Group
from controllerd.storage.io import Files
from controllerd.storage.journal import Segment
from controllerd.storage.journal_format import DATA_START
from controllerd.storage.journal_scan import Numbering, Scan, scan_journal
from controllerd.storage.layers import Layers
from controllerd.storage.received import Applied, check_received, reserve, show


async def recover_group(group: Group, files: Files, reached: int, *, intact: bool = False) -> int | None:
    """Bring a group up to the end of its journal; returns how many records were redone, None when it is held.

    A primary's records become visible. At a secondary those through ``reached`` do, since the
    disks may have some of them, and the others wait for the apply loop. ``intact``: the machine
    has run on since the last write, only the process ended. A group that cannot be
    recovered is held.
    """
    facts = group.facts
    redone = 0

    def redo(record: Record) -> None:
        nonlocal redone
        if record.sequence > facts.destaged:
            visible = group.role is Role.PRIMARY or record.sequence <= reached
            _redo(group, record, visible=visible)
            redone += 1
            if visible and group.budget.full:
                write_layers_now(group)

    try:
        files.sync_directory(group.journal.directory)  # the run before may have died while it made a file
        with contextlib.ExitStack() as opened:
            scan = await _in_steps(
                scan_journal(
                    files,
                    group.journal.directory,
                    group_id=facts.group_id,
                    start_ordinal=facts.start_ordinal,
                    first=min(facts.retained, facts.destaged) + 1,
                    durable=max(facts.destaged, reached),
                    intact=intact,
                    numbering=Numbering(facts.incarnations, facts.generation, facts.numbered_here),
                    on_segment=_make_durable,
                    on_record=redo,
                    opened=opened,
                )
            )
            opened.pop_all()  # they are the journal's now
        group.journal.adopt(scan.chain, scan.spares, scan.last, scan.next_ordinal)
    except (RemoteCopyError, OSError) as error:
        _forget(group)
        group.hold(error if isinstance(error, RemoteCopyError) else DiskFailed(f"group {group.name}: {error}"))
        return None
    last = group.journal.last
    before = facts.incarnations
    facts.incarnations = [*(run for run in before if run[0] <= last), (last + 1, group.incarnation + 1)]
    try:
        end_recovery(group)
        group.journal.sync_now()  # before the catalogue names the incarnation
    except JournalFailed:  # the group can be read, and says why it takes no writes
        facts.incarnations = before  # the next start has to find the journal that there is
    group.update_accepting()
    return redone


def begin_again(group: Group) -> None:
    """Be as the catalogue has it, for another try at the recovery of a group that is held since the last one."""
    facts = group.facts
    group.last_seq = group.staged_seq = facts.destaged
    group.last_time, group.last_origin = facts.destaged_time, facts.destaged_origin
    group.applied = Applied(facts.destaged, facts.destaged_time, facts.destaged_origin)
    group.retention.begin()


def _redo(group: Group, record: Record, *, visible: bool) -> None:
    """Redo one journaled record, ``visible`` or pending for the apply loop."""
    volume = check_received(group, record.kind, record.volume, record.offset, record.length)
    group.last_seq = group.staged_seq = record.sequence
    group.last_time = record.time
    group.last_origin = max(group.last_origin, record.origin)
    if volume is not None:
        reserve(volume, record.kind, record.offset, record.length)
    if not visible:
        group.pending.append_record(record)
        return
    made = 0
    if volume is not None:
        data = record.data if record.kind == Kind.WRITE else None
        made = show(volume, record.offset, record.length, data)
    applied = group.applied
    applied.sequence, applied.time, applied.origin = record.sequence, record.time, group.last_origin
    group.layer_bytes += record.size + made
    group.budget.used += record.size + made


def end_recovery(group: Group) -> None:
    """Everything the scan found is durable now; go on behind it in a new incarnation."""
    reached = group.journal.last
    group.last_seq = group.staged_seq = reached
    group.acks.recovered(reached)
    own = group.role is Role.PRIMARY
    group.write_time.observe(group.last_time if own else min(group.last_time, MAX_HEARD))
    group.journal.incarnation = group.incarnation
    group.journal.begin_segment()


async def _in_steps(scan: Generator[None, None, Scan]) -> Scan:
    """Run a scan to its end, leaving the loop free between its steps: other groups may be at work."""
    while True:
        try:
            next(scan)
        except StopIteration as ended:
            found: Scan = ended.value
            return found
        await asyncio.sleep(0)


def _forget(group: Group) -> None:
    """Give back what was redone of a group that is held: nobody may read it, and other groups need the memory."""
    for volume in group.volumes.values():
        volume.layers = Layers(volume.shift)
    group.pending.clear()
    group.budget.release(group.layer_bytes)
    group.layer_bytes = 0


def _make_durable(segment: Segment, durable: int) -> None:
    """Make what was found in a segment durable, before anything of it is shown or reaches a disk.

    What is not proven durable (``durable`` is) is written again first: the run before may have
    seen a sync fail, and after that a sync alone succeeds without writing anything (F13).

    Raises:
        OSError: it cannot be.
    """
    if segment.last > durable:
        index = max(0, bisect_right(segment.sequences, durable + 1) - 1)
        first = segment.positions[index] if segment.positions else segment.end
        for start, end in ((0, DATA_START), (first, segment.end)):
            data = memoryview(bytearray(end - start))
            segment.file.read_now(data, start)
            segment.file.write(data, start)
    segment.file.sync_now()
    segment.begun = True
