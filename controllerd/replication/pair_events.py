"""Events of one pair that concern others: a lost mirror, a fence from further on, a journal that is full.

Owns: which pairs of this controller go on, stop or give way together.
Never: decides about one pair alone (primary.py, secondary.py do).

Source: spec §4.4, §5.1; invariants I3, I5, I14, I16.
"""

from __future__ import annotations

import asyncio

from controllerd.model.pair_state import PairEvent, PairState
from controllerd.replication.context import Context
from controllerd.replication.primary import PrimaryPair
from controllerd.replication.register import PairRegister
from controllerd.replication.sender import Source
from controllerd.storage.group import Group


class PairEvents:
    """Events of ``pairs``."""

    def __init__(self, context: Context, pairs: PairRegister) -> None:
        self._context = context
        self._pairs = pairs

    def sync_lost(self, lost: PrimaryPair, reason: str) -> None:
        """The synchronous peer of one pair does not answer: all pairs of its domain go on, or stop, together.

        So the image at the peer is frozen at one moment over all groups (rolling disaster).
        """
        spec = lost.record.spec
        facts: dict[str, object] = {"pair": spec.identity, "domain": spec.domain, "policy": spec.on_sync_loss}
        self._context.report("sync-lost", {**facts, "reason": reason})
        if spec.on_sync_loss == "block":
            return
        affected = [
            pair
            for pair in self._pairs.primaries.values()
            if pair.record.spec.mode == "sync"
            and pair.record.spec.domain == spec.domain
            and pair.record.peer == lost.record.peer
        ]
        why = f"{reason} (pair {spec.identity})"
        # All are durable before the first write is acknowledged without the mirror (I3).
        active = [pair for pair in affected if pair.active]
        for pair in active:
            pair.mark_suspended(PairEvent.FAIL, why)
        for pair in affected:
            pair.finish_suspend(PairEvent.FAIL, why)

    def fenced(self, fenced: PrimaryPair, reason: str) -> None:
        """The last site of a cascade was taken over: the first one must not take writes either (I16)."""
        for pair in self._pairs.secondaries.values():
            if pair.group is fenced.group and pair.record.state is not PairState.SSWS:
                pair.record.fence = {
                    "generation": fenced.group.generation, "cut_seq": pair.intake.received_seq, "reason": reason,
                }  # fmt: skip
                pair.record.diverged = {"cut_seq": pair.intake.received_seq, "last_seq": pair.intake.received_seq}
                self._context.save(pair.record)
                if pair.active:
                    pair.suspend(PairEvent.FAIL, reason)
                pair.start_fencing()

    def overflow(self, group: Group) -> None:
        """The journal of ``group`` is full: the pair whose secondary has least of it gives way."""
        now_s = asyncio.get_running_loop().time()
        pairs = [pair for pair in self._pairs.primaries.values() if pair.group is group]
        if pairs:
            min(pairs, key=lambda pair: pair.sender.ack.durable if pair.active else -1).overflow(now_s)

    def source(self, group: Group) -> Source:
        """How old the content of ``group`` is, if it is the secondary of another pair."""
        found = [pair.source() for pair in self._pairs.secondaries.values() if pair.group is group]
        return found[0] if found else Source()
