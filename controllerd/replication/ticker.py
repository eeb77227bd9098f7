"""Ticker: time ticks of the groups that are primaries here.

Owns: when a group gets a tick and at which time.
Never: sends it; a tick is a record like any other (spec §4.3).

A secondary shows only what is older than the latest time of *every* group, so each
group has to get past the newest write of all of them. Once all have, ticks end: a wholly
idle system costs nothing. In host mode writes share times until a tick or a host moves
the clock, so there busy groups get ticks too (model/write_time.py).

Source: RC ¶40-44; spec §4.3; invariants I5, I11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from controllerd.model.errors import RemoteCopyError
from controllerd.model.write_time import WriteTime
from controllerd.replication.ports import GroupPort


class _Seen:
    """What was seen of one group at the last look."""

    __slots__ = ("last_seq", "written")

    def __init__(self) -> None:
        self.last_seq = -1
        self.written = False


class Ticker:
    """Looks at the groups once per tick interval. ``clock`` gives wall ns; ``journal_tick`` stages and commits one."""

    def __init__(
        self, write_time: WriteTime, clock: Callable[[], int], journal_tick: Callable[[GroupPort, int], None]
    ) -> None:
        self._write_time = write_time
        self._clock = clock
        self._journal_tick = journal_tick
        self._newest = 0
        self._seen: dict[str, _Seen] = {}

    def look(self, groups: Iterable[GroupPort], wanted: Callable[[GroupPort], bool]) -> list[GroupPort]:
        """Return the groups that need a tick now; ``wanted`` says whether a group's secondary asks for one."""
        groups = list(groups)
        quiet: list[GroupPort] = []
        for group in groups:
            seen = self._seen.setdefault(group.name, _Seen())
            if group.last_seq != seen.last_seq:
                seen.last_seq = group.last_seq
                self._newest = max(self._newest, group.last_time)
                if self._write_time.source != "host":
                    continue
            quiet.append(group)
        if self._write_time.source == "sequence":
            # Ticks say nothing new, unless numbers were left out, or went to groups without a pair.
            return [group for group in quiet if wanted(group)]
        asked = any(wanted(group) for group in quiet)
        behind = any(group.last_time <= self._newest for group in quiet)
        if asked or (behind and self._write_time.last <= self._newest):
            # The last tick did not help (the secondary's line is ahead of it), or would not (the newest record was a
            # tick of the primary that was here before): the time moves even if nothing used it.
            self._write_time.observe(self._write_time.last)
        if asked or behind:
            return quiet  # all or none: a tick that is later than the others' last time would be left over
        return []

    def ticked(self, group: GroupPort) -> None:
        """The group's newest record is a tick: it does not make others need one."""
        self._seen[group.name].last_seq = group.last_seq

    def tick(self, groups: list[GroupPort]) -> None:
        """Give each of ``groups`` a tick, all at the same time."""
        if not groups:
            return
        shared = 0 if self._write_time.source == "sequence" else self._write_time.tick(self._clock())
        for group in groups:
            try:
                self._journal_tick(group, shared or self._write_time.tick(self._clock()))
            except RemoteCopyError:
                continue  # the group has failed and says so itself
            self.ticked(group)
