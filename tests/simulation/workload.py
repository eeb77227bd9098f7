"""Hosts: they write stamped blocks, flush and read, and note what they asked and what they were told.

Owns: one task per host, its connection to the site that serves its group, and the serials.
Never: knows what is right; reaches into a controller beyond what the NBD target asks of it.

A host sends a *pass* as the NBD target would take it from one receive buffer: the writes are
staged one by one, committed together, and answered when the group says so.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from controllerd.model.errors import RemoteCopyError
from controllerd.storage.group import Group
from controllerd.storage.volume import Volume
from controllerd.targets.nbd.errors import errno_of
from tests.simulation import history as h
from tests.simulation.plan import MAX_WRITE, HostPlan

if TYPE_CHECKING:
    from tests.simulation.machine import Site
    from tests.simulation.world import World

IN_FLIGHT: Final = 4
"""Passes that a host has under way at most."""
GIVE_UP_S: Final = 5.0
"""A host that finds no site to write to in so long a time leaves out a step."""


class Host:
    """One host of ``world``."""

    def __init__(self, world: World, plan: HostPlan) -> None:
        self.world = world
        self.plan = plan
        self.connection = ""
        self.stays_at: Site | None = None
        """Where it goes on whoever takes over; None: it goes where its group is served."""
        self._site: Site | None = None
        self._lives = 0
        self._under_way = 0
        self._room = asyncio.Event()

    async def run(self) -> None:
        """All steps, until done or until the world quiets."""
        for step in range(self.plan.steps):
            rng = self.world.plan.stream(self.plan.name, step)
            await asyncio.sleep(rng.expovariate(1 / self.plan.pause_s))
            if not await self._connected() or self.world.quiet:
                if self.world.quiet:
                    return
                continue
            while self._under_way >= IN_FLIGHT and not self.world.quiet:
                self._room.clear()
                try:
                    async with asyncio.timeout(1.0):
                        await self._room.wait()
                except TimeoutError:
                    continue
            await self._step(rng)

    def cut_off(self) -> None:
        """The site is gone: what is in flight is never answered."""
        if self._site is not None:
            self.world.note(h.Disconnected(self.world.now_s, self.connection))
            self._site = None
            self._under_way = 0
            self._room.set()

    @property
    def connected_to(self) -> Site | None:
        """The site that serves this host now."""
        return self._site

    async def _connected(self) -> bool:
        world = self.world
        waited_s = 0.0
        while not world.quiet:
            site = self.stays_at or world.sites[world.writer_of[self.plan.group]]
            held = world.hosts_held and self.stays_at is None
            if self._site is not None and self._site is not site:
                self.cut_off()
            if self._site is not None:
                return True
            if site.serving and not held and site.storage.groups[self.plan.group].read_error is None:
                self._lives += 1
                self.connection = f"{self.plan.name}.{self._lives}"
                self._site = site
                return True
            if waited_s > GIVE_UP_S:
                return False
            waited_s += 0.1
            await asyncio.sleep(0.1)
        return False

    async def _step(self, rng: random.Random) -> None:
        site = self._site
        if site is None:
            return
        chance = rng.random()
        volume = rng.choice(sorted(self.world.plan.volumes[self.plan.group]))
        if chance < 0.75:
            await self._write(site, rng)
        elif chance < 0.87:
            self._flush(site, volume)
        else:
            await self._read(site, volume, rng)

    # ---- writes -----------------------------------------------------------------------

    def _draw_write(self, rng: random.Random) -> h.Submitted:
        world, plan = self.world, self.world.plan
        name = rng.choice(sorted(plan.volumes[self.plan.group]))
        size = plan.volumes[self.plan.group][name]
        unit = rng.choice((512, 4096, 4096))
        length = unit * (1 if rng.random() < 0.6 else rng.randint(1, min(MAX_WRITE, size) // unit))
        offset = rng.randrange(0, size - length + 1, unit)
        what = rng.choices(("write", "zeroes", "trim"), (0.9, 0.05, 0.05))[0]
        carried = world.host_clock() if self.plan.carries else None
        return h.Submitted(
            world.now_s, world.next_serial(), self.connection and self._site.name if self._site else "",
            self.connection, self.plan.group, name, offset, length,
            "write" if what == "write" else "zeroes" if what == "zeroes" else "trim", carried, rng.random() < 0.1,
        )  # fmt: skip

    async def _write(self, site: Site, rng: random.Random) -> None:
        writes = []
        for _ in range(rng.choice((1, 1, 2, 4, 6))):
            write = self._draw_write(rng)
            self.world.note(write)
            writes.append(write)
        await self._accepting(site)
        if self._site is site and site.life is not None:
            self._under_way += 1
            site.life.call(self._pass, site, writes)

    async def _accepting(self, site: Site) -> None:
        """While the group takes no writes, the target reads no requests."""
        group = site.storage.groups[self.plan.group]
        if group.accepting or site.life is None:
            return
        self.world.reached("hosts wait for the group to accept")
        go = asyncio.Event()
        site.life.call(group.when_accepting, go.set)
        while self._site is site and not go.is_set():
            try:
                async with asyncio.timeout(0.5):
                    await go.wait()
            except TimeoutError:
                continue

    def _pass(self, site: Site, writes: list[h.Submitted]) -> None:
        """What the NBD target does with one receive buffer (in the site's life)."""
        world, connection = self.world, self.connection
        group = site.storage.groups[self.plan.group]
        staged: list[h.Submitted] = []
        for write in writes:
            try:
                self._stage(site, group, write)
                staged.append(write)
            except RemoteCopyError as error:
                world.note(h.Failed(world.now_s, write.serial, errno_of(error).name))
        try:
            group.commit()
        except RemoteCopyError:
            for write in staged:
                world.note(h.Failed(world.now_s, write.serial, "EIO"))
            self._answered(connection)
            return
        last = group.last_seq
        left = 2
        for when, serials in (
            (group.when_complete, [write.serial for write in staged if not write.fua]),
            (group.when_flushed, [write.serial for write in staged if write.fua]),
        ):

            def answer(error: RemoteCopyError | None, serials: list[int] = serials) -> None:
                nonlocal left
                left -= 1
                if not left:
                    self._answered(connection)
                if self.connection != connection or self._site is not site:
                    return
                for serial in serials:
                    if error is None:
                        world.note(h.Acknowledged(world.now_s, serial))
                    else:
                        world.note(h.Failed(world.now_s, serial, "EIO"))

            if serials:
                when(last, answer)
            else:
                answer(None)

    def _stage(self, site: Site, group: Group, write: h.Submitted) -> None:
        volume = site.storage.volumes[write.volume]
        if write.what == "write":
            data = memoryview(self.world.history.stamped(write))
            sequence = group.stage_write(volume, write.offset, data, write.host_time)
        else:
            sequence = group.stage_zeroes(
                volume, write.offset, write.length, trim=write.what == "trim", carried=write.host_time
            )
        self.world.trace(write.serial, sequence)

    def _answered(self, connection: str) -> None:
        if self.connection == connection:
            self._under_way -= 1
            self._room.set()

    # ---- flushes and reads --------------------------------------------------------------

    def _flush(self, site: Site, volume: str) -> None:
        world, connection = self.world, self.connection
        flush = world.next_request()
        world.note(h.FlushSubmitted(world.now_s, flush, site.name, connection, volume))
        group = site.storage.groups[self.plan.group]

        def answer(error: RemoteCopyError | None) -> None:
            if self.connection == connection and self._site is site:
                world.note(h.FlushAnswered(world.now_s, flush, "" if error is None else "EIO"))

        assert site.life is not None
        site.life.call(group.when_flushed, group.last_seq, answer)

    async def _read(self, site: Site, name: str, rng: random.Random) -> None:
        world, connection = self.world, self.connection
        size = world.plan.volumes[self.plan.group][name]
        length = 512 * rng.randint(1, size // 512)
        offset = rng.randrange(0, size - length + 1, 512)
        read = world.next_request()
        world.note(h.ReadSubmitted(world.now_s, read, site.name, connection, name, offset, length))
        assert site.life is not None
        data, error = await read_volume(site, site.storage.volumes[name], offset, length)
        if self.connection != connection or self._site is not site or (data is None and not error):
            return
        shown = () if data is None else world.history.shown(name, offset, data)
        world.note(h.ReadAnswered(world.now_s, read, shown, error))


async def read_volume(site: Site, volume: Volume, offset: int, length: int) -> tuple[bytes | None, str]:
    """Read as a target would; returns (data, "") or (None, error), the error "" when the site died."""
    buffer = bytearray(length)
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        error = ""
        try:
            if not volume.read_into(memoryview(buffer), offset):
                await volume.read(memoryview(buffer), offset)
        except RemoteCopyError as failed:
            error = errno_of(failed).name
        if not outcome.done():
            outcome.set_result(error)

    life = site.life
    if life is None:
        return None, ""
    life.spawn(work())
    while not outcome.done() and site.life is life:
        try:
            async with asyncio.timeout(0.5):
                await asyncio.shield(outcome)
        except TimeoutError:
            continue
    if not outcome.done():
        return None, ""
    error = outcome.result()
    return (None, error) if error else (bytes(buffer), "")
