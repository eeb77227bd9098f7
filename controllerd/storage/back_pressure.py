"""Back-pressure: whether hosts may send writes to a group now.

Owns: working out `Group.accepting` from journal, cache budget and faults, and waking those who waited.
Never: frees anything; it asks for checkpoints, destages and segments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controllerd.storage.group import Group


class BackPressure:
    """The gate of ``group``: nobody else sets `Group.accepting`."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._waiters: list[Callable[[], None]] = []

    def update(self) -> None:
        """Work out anew whether hosts may send writes, and wake those who waited."""
        group = self._group
        refused = group.journal.failed is not None or group.write_error is not None
        if not group.journal.chain and not refused:
            group.accepting = False  # not recovered yet: which files are spare is not known
            return
        if not refused:
            self._prepare_room()
        ready = refused or (not group.budget.full and group.journal.room >= group.margin)
        group.accepting = ready
        if group.budget.full:
            group.on_layer_full()
        if ready and self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter()

    def _prepare_room(self) -> None:
        group, journal = self._group, self._group.journal
        if journal.rolled:
            journal.rolled = False
            if journal.half_full:
                group.on_pressure()
            elif not journal.spares:
                group.on_segment_begun()  # now, not when the next write needs it
        if journal.room < group.margin and not journal.prepare(group.margin):
            group.on_pressure()

    def when_accepting(self, waiter: Callable[[], None]) -> None:
        """Call ``waiter`` once hosts may send writes again."""
        if self._group.accepting:
            waiter()
        else:
            self._waiters.append(waiter)
