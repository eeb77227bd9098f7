"""What hosts see: answers in time (I7), reads of what was written (I9), whole data (I10), daemons that stay up (I17).

Owns: judging requests and their answers.
Never: judges images of secondaries as a whole (`images` does).
"""

from __future__ import annotations

from typing import ClassVar

from tests.simulation.checker.base import Invariant
from tests.simulation.checker.images import Sight, say
from tests.simulation.checker.world import Life, Place, World, Write
from tests.simulation.history import (
    DAMAGED,
    SECTOR,
    ZEROS,
    Acknowledged,
    Crashed,
    Disconnected,
    Event,
    Failed,
    FaultBegun,
    FaultEnded,
    FlushAnswered,
    FlushSubmitted,
    Image,
    ReadAnswered,
    ReadSubmitted,
    Submitted,
)

_Request = tuple[str, int]


class BoundedHold(Invariant):
    """I7: every request is answered within the bound, unless its connection or site ended, or the disk hangs."""

    name: ClassVar[str] = "I7"
    sees: ClassVar[tuple[type[Event], ...]] = (
        Submitted,
        FlushSubmitted,
        ReadSubmitted,
        Acknowledged,
        Failed,
        FlushAnswered,
        ReadAnswered,
        Disconnected,
        Crashed,
        FaultBegun,
        FaultEnded,
    )

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._open: dict[_Request, tuple[Submitted | FlushSubmitted | ReadSubmitted, float]] = {}
        self._stalls: dict[str, tuple[str, float]] = {}

    def see(self, event: Event) -> None:
        match event:
            case Submitted():
                self._open["write", event.serial] = event, event.at
            case FlushSubmitted():
                self._open["flush", event.flush] = event, event.at
            case ReadSubmitted():
                self._open["read", event.read] = event, event.at
            case Acknowledged() | Failed():
                self._answered(("write", event.serial))
            case FlushAnswered():
                self._answered(("flush", event.flush))
            case ReadAnswered():
                self._answered(("read", event.read))
            case Disconnected():
                self._drop(lambda request: request.connection == event.connection)
            case Crashed():
                self._drop(lambda request: request.site == event.site)
            case FaultBegun(stalls=site) if site:
                self._stalls[event.name] = site, event.at
            case FaultEnded(name=name) if name in self._stalls:
                site, begun = self._stalls.pop(name)
                for key, (request, since) in self._open.items():
                    if request.site == site:
                        self._open[key] = request, since + event.at - max(begun, since)
            case _:
                pass

    def _answered(self, key: _Request) -> None:
        request = self._open.pop(key, None)
        if request is not None:
            self._judge(key, *request)

    def _drop(self, which: object) -> None:
        assert callable(which)
        for key, (request, since) in list(self._open.items()):
            if which(request):
                del self._open[key]
                self._judge(key, request, since)

    def _judge(self, key: _Request, request: Submitted | FlushSubmitted | ReadSubmitted, since: float) -> None:
        stalled = min((begun for site, begun in self._stalls.values() if site == request.site), default=self.world.now)
        waited_s = max(stalled, since) - since
        if waited_s > self.world.history.hold_bound_s:
            self.wrong(f"{key[0]} {key[1]} at {request.site} waited {waited_s:.3f} s")

    def end(self) -> None:
        for key, (request, since) in self._open.items():
            self._judge(key, request, since)


class Registers(Invariant):
    """I9: a sector shows the last write of its line, or one that nobody knows to have been before it; never back."""

    name: ClassVar[str] = "I9"
    sees: ClassVar[tuple[type[Event], ...]] = (ReadSubmitted, ReadAnswered, Image)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._reads: dict[int, tuple[ReadSubmitted, int]] = {}
        self._last: dict[tuple[Life, Place], tuple[Write | None, int]] = {}
        self._past: set[tuple[Life, Place, int]] = set()

    def see(self, event: Event) -> None:
        if isinstance(event, ReadSubmitted):
            self._reads[event.read] = event, self.world.index
        elif isinstance(event, ReadAnswered):
            read, index = self._reads.pop(event.read)
            if not event.error and len(event.shown) * SECTOR != read.length:
                self.wrong(f"read {event.read} of {read.length} bytes got {len(event.shown)} sectors")
            self._judge(read.site, read.volume, read.offset // SECTOR, event.shown, index)
        elif isinstance(event, Image):
            for volume, shown in event.shown.items():
                self._judge(event.site, volume, 0, shown, self.world.index)

    def _judge(self, site: str, volume: str, first: int, shown: tuple[int, ...], asked: int) -> None:
        """``asked``: index of the request; what was acknowledged before must be shown, at the primary."""
        world = self.world
        life = world.life(world.history.volumes[volume].group, site)
        for sector, serial in enumerate(shown, first):
            place = volume, sector
            if serial == DAMAGED:
                continue
            write = world.writes.get(serial)
            if serial != ZEROS and (write is None or write.refused or write not in world.places.get(place, ())):
                self.wrong(f"{site}: {volume} sector {sector} shows {serial}, which was never accepted there")
                return
            if life.site == site and place in world.places and not self._current(life, place, write, asked):
                return

    def _current(self, life: Life, place: Place, shown: Write | None, asked: int) -> bool:
        world = self.world

        def required(write: Write) -> bool:
            return (
                write.acked < asked and world.survived(write, life) and life.floor.get(write.serial) not in ("I3", "I4")
            )

        sight = _OneSector(world, place, life)
        missing = sight.hidden_at(place, shown, required)
        if missing is not None:
            self.wrong(f"{life.site}: {say(place, shown)}; write {missing.serial} came after it and was acknowledged")
            return False
        last = self._last.get((life, place))
        if last is not None and last[1] < asked and last[0] is not shown:
            before = last[0]
            if before is not None and sight.hidden_at(place, shown, lambda write: write is before) is not None:
                self.wrong(f"{life.site}: {say(place, shown)}, older than write {before.serial}, which was read before")
                return False
            if before is not None:
                self._past.add((life, place, before.serial))
            if shown is not None and (life, place, shown.serial) in self._past:
                self.wrong(f"{life.site}: {say(place, shown)} again after another was read")
                return False
        self._last[life, place] = shown, world.index
        if shown is not None:
            world.shows(life, shown)
        return True


class _OneSector(Sight):
    """The sight of one sector, for `hidden_at`."""

    def __init__(self, world: World, place: Place, life: Life) -> None:
        super().__init__(world, Image(world.now, life.site, {}))
        self.lives = {life.group: life}


class NoDamagedReads(Invariant):
    """I10: a read gives data, or an error; never data that is damaged."""

    name: ClassVar[str] = "I10"
    sees: ClassVar[tuple[type[Event], ...]] = (ReadAnswered,)

    def see(self, event: Event) -> None:
        if isinstance(event, ReadAnswered) and DAMAGED in event.shown:
            read = self.world.reads[event.read]
            sector = read.offset // SECTOR + event.shown.index(DAMAGED)
            self.wrong(f"{read.site}: a read of {read.volume} sector {sector} gave damaged data")


class StaysUp(Invariant):
    """I17: whatever comes in, the daemon does not end by itself."""

    name: ClassVar[str] = "I17"
    sees: ClassVar[tuple[type[Event], ...]] = (Crashed,)

    def see(self, event: Event) -> None:
        if isinstance(event, Crashed) and event.how == "fault":
            self.wrong(f"the daemon of {event.site} ended by itself")
