"""Recovery of one group: read its journal and redo what the last checkpoint lacks.

Owns: the order of recovery, and destaging in between when the journal holds more
than the cache may.
Never: opens a group whose journal has a hole below its durable end; such a group is
held: its volumes are neither readable nor writable until the operator decides (I8).
"""

from __future__ import annotations

from controllerd.model.errors import Corrupt, RemoteCopyError
from controllerd.model.pair_state import Role
from controllerd.model.records import Record
from controllerd.storage.destage import write_layers_now
from controllerd.storage.group import Group
from controllerd.storage.io import Files
from controllerd.storage.journal_scan import scan_journal


async def recover_group(group: Group, files: Files) -> int:
    """Bring a group up to the end of its journal; returns how many records were redone.

    A primary's records become visible, a secondary's wait for the apply loop. A group
    that cannot be recovered gets ``read_error`` and ``write_error`` and returns 0.
    """
    facts = group.facts
    redone = 0

    def redo(record: Record) -> None:
        nonlocal redone
        if record.sequence > facts.destaged:
            group.recover_record(record)
            redone += 1
            if group.budget.full and group.role is Role.PRIMARY:
                write_layers_now(group)

    try:
        scan = scan_journal(
            files,
            group.journal.directory,
            group_id=facts.group_id,
            start_ordinal=facts.start_ordinal,
            first=min(facts.retained, facts.destaged) + 1,
            own_numbers=facts.numbered_here,
            on_record=redo,
        )
        for segment in scan.chain:
            await segment.file.sync()
        group.journal.adopt(scan.chain, scan.spares, scan.last, scan.next_ordinal)
    except (RemoteCopyError, OSError) as error:
        fault = error if isinstance(error, RemoteCopyError) else Corrupt(f"group {group.name}: {error}")
        group.read_error = fault
        group.refuse_writes(fault)
        return 0
    facts.incarnations.append((group.journal.last + 1, facts.incarnations[-1][1] + 1))
    group.end_recovery()
    return redone
