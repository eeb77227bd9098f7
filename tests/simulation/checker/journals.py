"""What the journals of all sites must agree on: numbers (I2), times (I11), and that a mirror has it first (I3).

Owns: judging `Journaled` events.
Never: decodes a journal (`journal_tap` does).
"""

from __future__ import annotations

from typing import ClassVar, Final

from tests.simulation.checker.base import Invariant
from tests.simulation.checker.world import World, Write
from tests.simulation.history import (
    Acknowledged,
    Crashed,
    Durable,
    Event,
    FlushAnswered,
    FlushSubmitted,
    Journaled,
)

_NOTE: Final = 16
"""Kind of a record that has no number of its own."""

Space = tuple[str, str, int]
"""Group, the site that numbers its records, generation."""


def space_of(world: World, record: Journaled) -> Space:
    """Return whose numbers a record carries: an asynchronous secondary keeps those of its primary."""
    site = record.site
    while (pair := world.pair_to(record.group, site)) is not None and pair.mode == "async":
        site = pair.primary
    return record.group, site, record.generation


class Numbers(Invariant):
    """I2: a number stands for one record for ever, at every site, and none is left out."""

    name: ClassVar[str] = "I2"
    sees: ClassVar[tuple[type[Event], ...]] = (Journaled,)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._records: dict[tuple[Space, int, int], tuple[object, ...]] = {}
        self._last: dict[tuple[str, str, int], int] = {}

    def see(self, event: Event) -> None:
        if not isinstance(event, Journaled) or event.kind == _NOTE:
            return
        key = space_of(self.world, event), event.incarnation, event.sequence
        content = event.time, event.kind, event.volume, event.offset, event.length, event.data_crc
        known = self._records.setdefault(key, content)
        if known != content:
            self.wrong(f"{event.site}: number {event.sequence} of {event.group} stands for two records")
        journal = event.site, event.group, event.generation
        last = self._last.get(journal)
        if last is not None and event.sequence > last + 1:
            self.wrong(f"{event.site}: journal of {event.group} goes from {last} to {event.sequence}")
        self._last[journal] = max(event.sequence, last or 0)


class Times(Invariant):
    """I11: write times of a group never fall, and are never older than the time a host gave."""

    name: ClassVar[str] = "I11"
    sees: ClassVar[tuple[type[Event], ...]] = (Journaled,)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._times: dict[tuple[Space, int, int], int] = {}
        self._hosts = {
            group for domain in world.history.domains if domain.time_source == "host" for group in domain.groups
        }

    def see(self, event: Event) -> None:
        if not isinstance(event, Journaled) or event.kind == _NOTE:
            return
        space = space_of(self.world, event)
        self._times[space, event.incarnation, event.sequence] = event.time
        before = self._times.get((space, event.incarnation, event.sequence - 1), event.time)
        if event.time < before:
            self.wrong(f"{event.site}: record {event.sequence} of {event.group} at {event.time} ns, after {before} ns")
        write = self.world.writes.get(event.serial or 0)
        if event.group in self._hosts and write is not None and event.time < (write.event.host_time or 0):
            self.wrong(f"{event.site}: write {event.serial} at {event.time} ns, given {write.event.host_time} ns")


class _BeforeAcknowledged(Invariant):
    """Which journals have which writes by the time a host hears of one."""

    sees: ClassVar[tuple[type[Event], ...]] = (Journaled, Acknowledged)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._has: set[tuple[str, int]] = set()

    def see(self, event: Event) -> None:
        if isinstance(event, Journaled) and event.serial is not None:
            self._has.add((event.site, event.serial))


class MirroredFirst(_BeforeAcknowledged):
    """I3: a host hears of its write when both journals have it, as long as the pair is PAIR."""

    name: ClassVar[str] = "I3"

    def see(self, event: Event) -> None:
        super().see(event)
        if isinstance(event, Acknowledged) and self.world.history.prompt:
            write = self.world.writes[event.serial]
            if write.zeros:
                return
            for pair in self.world.pairs:
                if (pair.group, pair.primary, pair.mode) != (write.event.group, write.event.site, "sync"):
                    continue
                mirrored = not pair.taken_over and pair.left > self.world.index and pair.made < write.index
                known = pair.secondary in self.world.tapped and write.event.site in self.world.tapped
                if mirrored and known and (pair.secondary, write.serial) not in self._has:
                    self.wrong(f"write {write.serial} was acknowledged and {pair.secondary} has not journaled it")


class JournaledFirst(_BeforeAcknowledged):
    """I4: a host hears of its write when the journal of its own controller has it."""

    name: ClassVar[str] = "I4"

    def see(self, event: Event) -> None:
        super().see(event)
        if isinstance(event, Acknowledged):
            write = self.world.writes[event.serial]
            site = write.event.site
            if not write.zeros and site in self.world.tapped and (site, write.serial) not in self._has:
                self.wrong(f"write {write.serial} was acknowledged and {site} has not journaled it")


class DurableFirst(Invariant):
    """I4: a flush succeeds when the journal has on its disk what was acknowledged before; a mirror's journal too."""

    name: ClassVar[str] = "I4"
    sees: ClassVar[tuple[type[Event], ...]] = (
        Journaled,
        Durable,
        Acknowledged,
        FlushSubmitted,
        FlushAnswered,
        Crashed,
    )

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._has: set[tuple[str, int]] = set()
        self._sites: set[str] = set()
        self._acked: dict[tuple[str, str], list[Write]] = {}
        """Site and volume -> writes that no flush has covered yet."""
        self._lost: dict[tuple[str, int], Write] = {}
        """Site and serial -> writes that no flush had covered when its power went, unless it has found them again."""
        self._flushes: dict[int, tuple[FlushSubmitted, list[Write]]] = {}

    def see(self, event: Event) -> None:
        match event:
            case Journaled():
                found = self._lost.pop((event.site, event.serial or 0), None)
                if found is not None:
                    self._acked.setdefault((event.site, found.event.volume), []).append(found)
            case Crashed(how="power" | "disk"):
                # What an earlier life of the site lost without a flush is not what a later flush speaks of.
                for place in [place for place in self._acked if place[0] == event.site]:
                    self._lost.update({(event.site, write.serial): write for write in self._acked.pop(place)})
            case Durable():
                self._has.update((event.site, serial) for serial in event.serials)
                self._sites.add(event.site)
            case Acknowledged():
                write = self.world.writes[event.serial]
                if write.flushed:
                    self._judge([write])
                else:
                    self._acked.setdefault((write.event.site, write.event.volume), []).append(write)
            case FlushSubmitted():
                self._flushes[event.flush] = event, list(self._acked.get((event.site, event.volume), ()))
            case FlushAnswered():
                flush, covered = self._flushes.pop(event.flush)
                if not event.error:
                    self._judge(covered)
                    waiting = self._acked.get((flush.site, flush.volume), [])
                    self._acked[flush.site, flush.volume] = [write for write in waiting if write not in covered]
            case _:
                pass

    def _judge(self, covered: list[Write]) -> None:
        for write in covered:
            if write.zeros:
                continue
            for site in (write.event.site, *self._mirrors(write)):
                if site in self._sites and (site, write.serial) not in self._has:
                    self.wrong(f"write {write.serial} was flushed, and is not durable in the journal of {site}")
                    return

    def _mirrors(self, write: Write) -> list[str]:
        return [
            pair.secondary
            for pair in self.world.pairs
            if (pair.group, pair.primary, pair.mode) == (write.event.group, write.event.site, "sync")
            and self.world.history.prompt
            and not pair.taken_over
            and pair.left > self.world.index
            and pair.made < write.index
        ]
