"""Retention: how much of a group's journal its consumers still need.

Owns: what each consumer has, and recycling what nobody needs.
Never: knows what a consumer is, or makes room by force (an overflow is replication's to decide).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from controllerd.storage.group import Group

RECOVERED: Final = "recovered"
"""Consumer that stands for all consumers of the run before, until they say themselves what they have."""


class Retention:
    """What is kept of the journal of ``group``."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._acked: dict[str, int] = {}
        self.begin()

    def begin(self) -> None:
        """As after a start: until the pairs are loaded again, what they had not got is kept for them."""
        facts = self._group.facts
        self._acked = {RECOVERED: facts.retained} if facts.retained < facts.destaged else {}

    def clear(self) -> None:
        """The journal begins anew: nobody needs anything of it."""
        self._acked.clear()

    def keep(self, consumer: str, acked: int | None) -> None:
        """Keep the journal above ``acked`` for ``consumer``; None: it needs nothing more.

        What is gone already is not kept, whoever asks for it: the next start would look for it in vain.
        """
        group, journal = self._group, self._group.journal
        if acked is None:
            self._acked.pop(consumer, None)
        else:
            self._acked[consumer] = max(acked, journal.first - 1)
        journal.keep_tail = bool(self._acked)
        kept = self.through()
        journal.trim_tail(group.last_seq if kept is None else kept)
        if not group.accepting:
            group.on_pressure()  # segments come back with a checkpoint, which must know first what is kept

    def through(self) -> int | None:
        """Lowest number that all consumers have, or None without consumers."""
        return min(self._acked.values()) if self._acked else None

    def free(self) -> None:
        """Recycle journal segments that neither recovery nor a consumer needs, as the last checkpoint knows them."""
        group = self._group
        kept = self.through()
        through = min(group.facts.retained, group.facts.destaged)
        if group.journal.free_through(through if kept is None else min(kept, through)):
            group.update_accepting()

    def lowest(self, destaged: int) -> int:
        """Lowest number that all consumers and the disks have, if the disks have ``destaged``."""
        return min([*self._acked.values(), destaged])
