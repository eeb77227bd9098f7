"""What every pair of this controller works with.

Owns: nothing; it holds the settings, the storage system and the ways to report and keep.
Never: decides anything.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from controllerd.model.errors import BadOrder
from controllerd.model.pair_state import PairEvent, PairState, next_state
from controllerd.replication.pair_record import TABLE, PairRecord
from controllerd.replication.ports import Report
from controllerd.replication.settings import ReplicationSettings
from controllerd.storage.system import StorageSystem


@dataclass(frozen=True, slots=True)
class Context:
    """Shared by all pairs of one controller. ``clock`` gives wall time in ns; ``report`` logs an event."""

    settings: ReplicationSettings
    storage: StorageSystem
    clock: Callable[[], int]
    rng: random.Random
    report: Report

    def save(self, record: PairRecord) -> None:
        """Keep a pair's record; durable on return."""
        self.storage.catalogue.put_document(TABLE, record.spec.identity, record.document())

    def move(self, record: PairRecord, event: PairEvent, reason: str) -> bool:
        """Change the state by ``event`` and keep it durably; returns whether it changed. The first reason stays (I14).

        Raises:
            BadOrder: not possible in the present state.
        """
        following = next_state(record.state, event)
        if following is record.state:
            return False
        before, record.state = record.state, following
        record.reason = reason
        record.since = self.clock()
        self.save(record)
        self.report(
            "pair-state",
            {
                "pair": record.spec.identity, "group": record.group, "role": record.role.value,
                "before": before.value, "state": following.value, "reason": reason,
            },
        )  # fmt: skip
        return True

    def report_damage(self, record: PairRecord, what: str) -> None:
        """Damaged data came from the peer of a pair."""
        facts: dict[str, object] = {"pair": record.spec.identity, "role": record.role.value, "peer": record.peer}
        self.report("transfer-damaged", {**facts, "reason": what})

    def check_peer(self, name: str) -> None:
        """Refuse a peer that is not configured.

        Raises:
            BadOrder: there is none of this name.
        """
        if name not in self.settings.peers:
            known = ", ".join(sorted(self.settings.peers)) or "none"
            raise BadOrder(f"no peer named {name} is configured here (configured: {known})", peer=name)


def is_active(state: PairState) -> bool:
    """Whether records travel in this state."""
    return state in (PairState.PAIR, PairState.COPY)
