"""Faults: one small class each. A new one is a class in `FAULTS`; the swarm, the report and the shrinker find it there.

Owns: what goes wrong, for how long, and that it is over when the world heals.
Never: decides when; the plan does.

Source: fault catalogue F1-F28.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from controllerd.model import records
from controllerd.replication import frames
from tests.simulation.at_rest import spoil_journal
from tests.simulation.disk import POWER_LOSSES, Loss
from tests.simulation.machine import PORT
from tests.simulation.network import Path

if TYPE_CHECKING:
    from tests.simulation.disk import SimulatedFile
    from tests.simulation.machine import Site
    from tests.simulation.world import World


class Fault:
    """One kind of fault. ``begin`` does it, ``end`` undoes what can be undone; both may be called once only."""

    name: ClassVar[str]
    """As in the fault catalogue."""
    weight: ClassVar[float] = 1.0
    longest_s: ClassVar[float] = 3.0

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.where = ""
        """What it hits, for people."""
        self.stalls = ""
        """A site whose hosts may have to wait meanwhile."""

    def begin(self) -> None:
        """Do it."""
        raise NotImplementedError

    def end(self) -> None:
        """It is over."""

    def duration_s(self) -> float:
        """How long it lasts."""
        return self.rng.random() ** 2 * self.longest_s

    def pick_site(self) -> Site:
        """Any site."""
        site = self.world.sites[self.rng.choice(self.world.plan.sites)]
        self.where = site.name
        return site

    def pick_path(self) -> tuple[str, str]:
        """Two sites that are a pair's, in any order."""
        leg = self.rng.choice(self.world.plan.legs)
        ends = [leg.primary, leg.secondary]
        self.rng.shuffle(ends)
        self.where = f"{ends[0]}-{ends[1]}"
        return ends[0], ends[1]


# ---- sites ------------------------------------------------------------------------------------


class Kill(Fault):
    """The daemon is killed, and started again after a while."""

    name = "F1 kill"
    weight = 2.0

    def begin(self) -> None:
        self._site = self.pick_site()
        self._site.end(Loss.KILL)

    def end(self) -> None:
        self._site.boot()


class KillInCall(Kill):
    """The daemon dies in the middle of a call to its disk, also while it starts (F2)."""

    name = "F2 kill in a call"
    weight = 2.0
    loss: ClassVar[tuple[Loss, ...]] = (Loss.KILL,)

    def begin(self) -> None:
        self._site = site = self.pick_site()
        again = self.rng.random() < 0.5
        if again:
            site.end(self.rng.choice(self.loss))
            site.boot()
        site.cut_loss = self.rng.choice(self.loss)
        site.disk.cut_in = self.rng.randint(1, 60 if again else 200)

    def end(self) -> None:
        self._site.disk.cut_in = None
        self._site.boot()


class PowerCutInCall(KillInCall):
    """The power fails in the middle of a call."""

    name = "F5 power cut in a call"
    loss = POWER_LOSSES


class PowerLoss(Fault):
    """A machine loses its power and what was not synced."""

    name = "F3 power cut"
    weight = 2.0

    def begin(self) -> None:
        self._sites = [self.pick_site()]
        self._cut()

    def _cut(self) -> None:
        for site in self._sites:
            site.end(self.rng.choice(POWER_LOSSES))

    def end(self) -> None:
        for site in self._sites:
            site.boot()


class PowerLossEverywhere(PowerLoss):
    """All machines lose their power together; some get it back before the others."""

    name = "F7 power cut everywhere"
    weight = 0.7

    def begin(self) -> None:
        self._sites = list(self.world.sites.values())
        self.rng.shuffle(self._sites)
        self._cut()
        early = random.Random()
        early.setstate(self.rng.getstate())
        if early.random() < 0.4:
            for site in self._sites[1:]:
                self.world.loop.call_later(early.random() * 0.5, site.boot)


class PowerLossUnheard(PowerLoss):
    """A synchronous secondary loses its power, and when it is back its primaries are not heard for a while.

    What it had confirmed and not synced may be missing, and nobody can say so: hosts go on at the primaries.
    """

    name = "F3 power cut of an unheard mirror"

    def begin(self) -> None:
        world = self.world
        self._sites = []
        self._paths: list[Path] = []
        synchronous = [leg for leg in world.plan.legs if leg.mode == "sync"]
        if not synchronous:
            return
        mirror = world.sites[self.rng.choice(synchronous).secondary]
        self.where = mirror.name
        primaries = sorted({leg.primary for leg in synchronous if leg.secondary == mirror.name})
        if self.rng.random() < 0.3:
            primaries = [self.rng.choice(primaries)]
        for primary in primaries:
            self._paths += world.network.path(primary, mirror.name), world.network.path(mirror.name, primary)
        for path in self._paths:
            path.blocked = True
        self._sites = [mirror]
        self._cut()
        world.reached("an unheard mirror lost its power")
        world.loop.call_later(self.rng.random() * 0.3, mirror.boot)

    def duration_s(self) -> float:
        """Long enough for the secondary to show by itself what it has."""
        return 0.5 + self.rng.random() * self.longest_s

    def end(self) -> None:
        for path in self._paths:
            path.blocked = False
        self.world.network.kick()
        super().end()


class Pause(Fault):
    """The daemon stands still and goes on later, late for everything."""

    name = "F33 paused daemon"
    longest_s = 6.0

    def begin(self) -> None:
        site = self.pick_site()
        self.stalls = site.name
        self._life = site.life
        if self._life is not None:
            self._life.pause()

    def end(self) -> None:
        if self._life is not None and self._life.alive:
            self._life.resume(self.world.loop)


class ClockStep(Fault):
    """A wall clock jumps, or stands still for a while."""

    name = "F28 clock"

    def begin(self) -> None:
        self._site = self.pick_site()
        if self.rng.random() < 0.25:
            self._site.clock.stop()
        else:
            # Not an hour back: then the times of hosts, whose clocks are right, would be believed no more.
            self._site.clock.step(self.rng.choice((-600.0, -2.0, -0.01, 0.5, 60.0, 3.2e7)))

    def end(self) -> None:
        self._site.clock.go()


# ---- disks ------------------------------------------------------------------------------------


class DiskFault(Fault):
    """Some calls to a disk fail."""

    weight = 0.4
    operations: ClassVar[tuple[str, ...]]
    number: ClassVar[int]
    probability: ClassVar[tuple[float, ...]] = (0.02, 0.3, 1.0)

    def begin(self) -> None:
        self._site = self.pick_site()
        self._chance = self.rng.choice(self.probability)
        self._site.disk.fault = self._fail

    def _fail(self, operation: str, path: str, offset: int, length: int) -> None:
        if operation in self.operations and self.rng.random() < self._chance:
            self.world.reached(f"{self.name} hit")
            raise OSError(self.number, os.strerror(self.number), path)

    def end(self) -> None:
        if self._site.disk.fault == self._fail:
            self._site.disk.fault = None


class ReadError(DiskFault):
    """Reads fail."""

    name = "F11 EIO on read"
    operations = ("read",)
    number = errno.EIO


class WriteError(DiskFault):
    """Writes fail."""

    name = "F12 EIO on write"
    operations = ("write",)
    number = errno.EIO


class SyncError(DiskFault):
    """Syncs fail, and what they should have synced is lost though it can still be read."""

    name = "F13 EIO on fsync"
    operations = ("sync",)
    number = errno.EIO
    probability = (0.05, 1.0)


class FailedJournalSync(Fault):
    """The next sync of a journal fails, once: what it should have synced is lost, and those after it do not say so."""

    name = "F13 EIO on fsync of a journal"

    def begin(self) -> None:
        self._site = self.pick_site()
        self._site.disk.fault = self._fail

    def _fail(self, operation: str, path: str, offset: int, length: int) -> None:
        if operation == "sync" and "/journals/" in path:
            self.end()
            self.world.reached(f"{self.name} hit")
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def duration_s(self) -> float:
        """As long as it takes until a journal is synced."""
        return self.longest_s

    def end(self) -> None:
        if self._site.disk.fault == self._fail:
            self._site.disk.fault = None


class DiskFull(DiskFault):
    """The file system gives no more space."""

    name = "F10 disk full"
    operations = ("allocate", "open")
    number = errno.ENOSPC
    probability = (0.5, 1.0)
    weight = 0.7


class SpoiltRead(Fault):
    """A disk gives other bytes than it has: one bit turned, or those of another place; later it gives the right ones.

    Only of journals, since nothing tells such bytes from good ones on a data disk, and not while a controller
    starts, since a damaged last record is then taken for the end (ARCHITECTURE, known limits).
    """

    name = "F15 spoilt read"

    def begin(self) -> None:
        self._site = self.pick_site()
        self._chance = self.rng.choice((0.05, 0.5))
        self._site.disk.spoil = self._spoil

    def _spoil(self, file: SimulatedFile, offset: int, buffer: memoryview) -> None:
        if not self._site.serving or "/journals/" not in file.path or self.rng.random() > self._chance:
            return
        self.world.reached("a journal was read back wrong")
        other = file.peek(max(0, offset + self.rng.choice((-4096, -512, 512, 4096))), len(buffer))
        if len(other) == len(buffer) and self.rng.random() < 0.3:
            buffer[:] = other
        else:
            buffer[self.rng.randrange(len(buffer))] ^= 1 << self.rng.randrange(8)

    def end(self) -> None:
        if self._site.disk.spoil == self._spoil:
            self._site.disk.spoil = None


class RotAtRest(Fault):
    """A record in a journal is damaged for good: by rot, or because another write landed there (F17)."""

    name = "F15 rot at rest"

    def begin(self) -> None:
        self._site = site = self.pick_site()
        if not site.serving:
            return
        group = site.storage.groups[self.rng.choice(sorted(site.storage.groups))]
        if group.read_error is None and spoil_journal(site.disk, group, self.rng):
            self.world.damage(site.name, group.name)
            self.world.reached("a journal was damaged at rest")
        if self.rng.random() < 0.5:  # else it is found when a peer or the apply loop needs it, or never
            site.end(self.rng.choice((Loss.KILL, *POWER_LOSSES)))

    def end(self) -> None:
        self._site.boot()


class RotInCatalogue(Fault):
    """A row of a catalogue is damaged while its site is down: the controller does not start again."""

    name = "F16 rot in a catalogue"

    def begin(self) -> None:
        self._site = site = self.pick_site()
        if not site.serving or site.catalogue is None:
            return
        site.end(Loss.KILL)
        site.catalogue.spoil(self.rng)
        self.world.damage(site.name)

    def end(self) -> None:
        self._site.boot()


class SlowDisk(Fault):
    """Syncs and reads take long."""

    name = "F14 slow disk"

    def begin(self) -> None:
        site = self.pick_site()
        self.stalls = site.name
        self._disk = site.disk
        self._before = self._disk.sync_seconds
        self._disk.sync_seconds = self.rng.choice((0.3, 2.0, 10.0))

    def end(self) -> None:
        self._disk.sync_seconds = self._before


# ---- the network ------------------------------------------------------------------------------


class Reset(Fault):
    """Connections are reset, some of them again and again."""

    name = "F20 reset"
    weight = 2.0

    def begin(self) -> None:
        self._over = False
        self._again(self.rng.choice((0, 0, 3, 10)))

    def _again(self, times: int) -> None:
        network = self.world.network
        ends = [end for end in network.ends if not end.gone]
        if ends:
            network.reset(self.rng.choice(ends))
        if times and not self._over:
            self.world.loop.call_later(self.rng.random() * 0.3, self._again, times - 1)

    def end(self) -> None:
        self._over = True


class Block(Fault):
    """A path carries nothing."""

    name = "F19 partition"
    weight = 1.5
    ways: ClassVar[int] = 2

    def begin(self) -> None:
        one, other = self.pick_path()
        self._paths = [(one, other), (other, one)][: self.ways]
        for source, target in self._paths:
            self.world.network.path(source, target).blocked = True

    def end(self) -> None:
        for source, target in self._paths:
            self.world.network.path(source, target).blocked = False
        self.world.network.kick()


class BlockOneWay(Block):
    """A path carries nothing in one direction."""

    name = "F22 one-way loss"
    ways = 1


class Isolate(Block):
    """A site is cut off from all others."""

    name = "F26 isolated site"
    weight = 0.7

    def begin(self) -> None:
        site = self.pick_site().name
        others = [name for name in self.world.plan.sites if name != site]
        self._paths = [pair for other in others for pair in ((site, other), (other, site))]
        for source, target in self._paths:
            self.world.network.path(source, target).blocked = True


class Flap(Fault):
    """A path goes up and down."""

    name = "F21 flapping"

    def begin(self) -> None:
        self._path = self.world.network.path(*self.pick_path())
        self._over = False
        self._turn()

    def _turn(self) -> None:
        if not self._over:
            self._path.blocked = not self._path.blocked
            self.world.network.kick()
            self.world.loop.call_later(self.rng.choice((0.1, 0.4)), self._turn)

    def end(self) -> None:
        self._over = True
        self._path.blocked = False
        self.world.network.kick()


class SlowLink(Fault):
    """A path is slow, or takes long, or brings everything in crumbs."""

    name = "F23 slow link"
    weight = 1.5
    longest_s = 6.0

    def begin(self) -> None:
        self._path = path = self.world.network.path(*self.pick_path())
        self._before = (path.low_s, path.high_s, path.rate, path.chunk)
        if self.rng.random() < 0.5:
            path.low_s, path.high_s = self.rng.choice(((0.1, 0.2), (0.02, 0.5)))
        if self.rng.random() < 0.5:
            path.rate = self.rng.choice((8e3, 64e3))
        if self.rng.random() < 0.4:
            path.chunk = self.rng.choice((300, 1500))

    def end(self) -> None:
        path = self._path
        path.low_s, path.high_s, path.rate, path.chunk = self._before


class Rot(Fault):
    """Bits turn on the way."""

    name = "F15 rot on the wire"

    def begin(self) -> None:
        self._path = self.world.network.path(*self.pick_path())
        self._path.rot = self.rng.choice((0.01, 0.2))

    def end(self) -> None:
        self._path.rot = 0.0


class HeldConnections(Fault):
    """Some connections bring nothing, and others between the same sites go on: groups arrive one without the other."""

    name = "F23 held connections"

    def begin(self) -> None:
        source, target = self.pick_path()
        both = [end for near in self.world.network.ends for end in (near, near.peer)]
        ends = [end for end in both if (end.site, end.peer.site) == (source, target)]
        self._ends = [end for end in ends if self.rng.random() < 0.5]
        for end in self._ends:
            end.held = True
            self.world.reached("a connection was held")

    def end(self) -> None:
        for end in self._ends:
            end.held = False
        self.world.network.kick()


class RotOfHeaders(Rot):
    """Bits turn where frames begin, or the first records in them."""

    name = "F15 rot of headers on the wire"

    def begin(self) -> None:
        super().begin()
        self._path.rot_within = frames.HEADER_SIZE + records.HEADER_SIZE

    def duration_s(self) -> float:
        """Few chunks have headers at their beginnings."""
        return self.longest_s

    def end(self) -> None:
        super().end()
        self._path.rot_within = Path().rot_within


class Replay(Fault):
    """Somebody plays the beginning of an earlier connection again on a new one."""

    name = "F25 replayed connection"

    def begin(self) -> None:
        network = self.world.network
        known = [end for end in network.ends if end.sent]
        if known:
            end = self.rng.choice(known)
            data = bytes(end.sent or b"")
            network.replay(end.site, end.peer.site, PORT, data[: self.rng.randint(1, len(data))])
            self.where = f"{end.site}-{end.peer.site}"


FAULTS: Final[tuple[type[Fault], ...]] = (
    Kill, KillInCall, PowerCutInCall, PowerLoss, PowerLossEverywhere, Pause, ClockStep, ReadError, WriteError,
    SyncError, DiskFull, SlowDisk, Reset, Block, BlockOneWay, Isolate, Flap, SlowLink, Rot, Replay,
)  # fmt: skip
_RARE: Final[tuple[tuple[type[Fault], float], ...]] = (
    (SpoiltRead, 0.1), (PowerLossUnheard, 0.1), (RotAtRest, 0.06), (RotInCatalogue, 0.02),
    (FailedJournalSync, 0.1), (RotOfHeaders, 0.15), (HeldConnections, 0.3),
)  # fmt: skip
"""Faults with the share of seeds that have them. See `plan.draw`: new ones at the end."""
RARE: Final = tuple((fault.__name__, share) for fault, share in _RARE)
BY_NAME: Final = {fault.__name__: fault for fault in (*FAULTS, *(fault for fault, _ in _RARE))}
KINDS: Final = tuple((fault.__name__, fault.weight) for fault in FAULTS)


async def play(world: World, kind: str, number: int, at: float, note: Callable[[str, str, str, bool], None]) -> None:
    """Let fault ``number`` happen; ``note`` is told (name, where, stalls, begun). Healing ends it."""
    await asyncio.sleep(at)
    fault = BY_NAME[kind](world, world.plan.stream("fault", number))
    if world.healing.is_set():
        return
    fault.begin()
    note(fault.name, fault.where, fault.stalls, True)
    try:
        async with asyncio.timeout(fault.duration_s()):
            await world.healing.wait()
    except TimeoutError:
        pass
    fault.end()
    note(fault.name, fault.where, fault.stalls, False)
