"""Hosts of real controllers that keep a history, for the checker of the simulation.

Owns: stamped writes, flushes and reads over NBD, each noted before it is sent and when it is answered; images of
whole volumes; what becomes of sites and orders, as the test says.
Never: judges (`tests.simulation.checker` does), or knows why something fails.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import uvloop

from hostsim.errors import CommandFailed, ConnectFailed, ConnectionLost
from hostsim.nbdclient import NbdConnection
from tests.integration.harness import Controller, wait_for
from tests.simulation.checker import check
from tests.simulation.history import (
    SECTOR,
    Acknowledged,
    Answered,
    Crashed,
    Disconnected,
    Domain,
    Failed,
    FaultBegun,
    FaultEnded,
    FlushAnswered,
    FlushSubmitted,
    History,
    Image,
    Ordered,
    Quiet,
    ReadAnswered,
    ReadSubmitted,
    Restarted,
    Status,
    Submitted,
)

WRITE_SECTORS_MAX = 8


def _applied(controller: Controller) -> list[int | None]:
    """How far each secondary group of a controller is applied."""
    return [entry["applied"]["seq"] for entry in controller.pairs() if entry["role"] == "secondary"]


class Recorder:
    """Keeps the history of one run. ``sizes``: group -> volume -> bytes.

    Names of groups and volumes are the same on all controllers. ``at`` is this process's monotonic clock.
    """

    def __init__(self, sizes: Mapping[str, Mapping[str, int]], seed: int, time_source: str = "host") -> None:
        self.random = random.Random(seed)
        self.history = History.make(
            self.random.getrandbits(63),
            {group: dict(volumes) for group, volumes in sizes.items()},
            domains=[Domain(time_source, "time", tuple(sizes))],
        )
        self._begun_s = time.monotonic()
        self._serial = itertools.count(1)
        self._request = itertools.count(1)

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._begun_s

    # ---- hosts -----------------------------------------------------------------

    def work(self, controller: Controller, *, hosts: int = 2, steps: int = 40, limit_s: float = 60.0) -> None:
        """Let hosts work on all volumes until each has done its steps or lost its connection.

        A host that hangs is cut off after ``limit_s``; the checker sees what was not answered (I7).
        """
        uvloop.run(self._work(controller, hosts, steps, limit_s))

    async def _work(self, controller: Controller, hosts: int, steps: int, limit_s: float) -> None:
        tasks = [asyncio.create_task(self._host(controller, steps)) for _ in range(hosts)]
        done, late = await asyncio.wait(tasks, timeout=limit_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in done:
            task.result()

    async def _host(self, controller: Controller, steps: int) -> None:
        name = f"host {next(self._request)} of {controller.name}"
        connections: dict[str, NbdConnection] = {}
        try:
            for volume in self.history.volumes:
                timed = self.history.domains[0].time_source == "host"
                connections[volume] = await NbdConnection.connect(controller.uri(volume), write_time=timed)
            for _ in range(steps):
                volume = self.random.choice(sorted(connections))
                action = self.random.random()
                if action < 0.75:
                    await self._write(controller.name, name, volume, connections[volume])
                elif action < 0.85:
                    await self._flush(controller.name, name, volume, connections[volume])
                else:
                    await self._read(controller.name, name, volume, connections[volume])
        except (ConnectFailed, ConnectionLost):
            pass  # that is what a crash looks like to a host
        finally:
            self.history.add(Disconnected(self.now, name))
            for connection in connections.values():
                await connection.close()

    async def _write(self, site: str, name: str, volume: str, connection: NbdConnection) -> None:
        facts = self.history.volumes[volume]
        count = self.random.choice((1, 1, WRITE_SECTORS_MAX, self.random.randint(1, WRITE_SECTORS_MAX)))
        first = self.random.randrange(facts.size // SECTOR - count)
        timed = time.time_ns() if connection.write_time else None
        fua = self.random.random() < 0.2
        serial, offset, length = next(self._serial), first * SECTOR, count * SECTOR
        write = Submitted(
            self.now, serial, site, name, facts.group, volume, offset, length, host_time=timed, fua=fua
        )  # fmt: skip
        self.history.add(write)
        try:
            await connection.write(write.offset, self.history.stamped(write), timed, fua)
        except CommandFailed as error:
            self.history.add(Failed(self.now, write.serial, errno.errorcode.get(error.errno, str(error.errno))))
            await asyncio.sleep(0.02)  # like a host that tries again later
        else:
            self.history.add(Acknowledged(self.now, write.serial))

    async def _flush(self, site: str, name: str, volume: str, connection: NbdConnection) -> None:
        number = next(self._request)
        self.history.add(FlushSubmitted(self.now, number, site, name, volume))
        try:
            await connection.flush()
        except CommandFailed as error:
            self.history.add(FlushAnswered(self.now, number, errno.errorcode.get(error.errno, str(error.errno))))
        else:
            self.history.add(FlushAnswered(self.now, number))

    async def _read(self, site: str, name: str, volume: str, connection: NbdConnection) -> None:
        size = self.history.volumes[volume].size
        number = next(self._request)
        self.history.add(ReadSubmitted(self.now, number, site, name, volume, 0, size))
        try:
            data = await connection.read(0, size)
        except CommandFailed as error:
            self.history.add(ReadAnswered(self.now, number, error=errno.errorcode.get(error.errno, "error")))
        else:
            self.history.add(ReadAnswered(self.now, number, self.history.shown(volume, 0, data)))

    def image(self, controller: Controller) -> None:
        """Note what all volumes show. No host may be writing; a secondary may be applying what it receives."""
        wait_for(f"{controller.name} to show one moment", lambda: self._image(controller))

    def _image(self, controller: Controller) -> bool:
        """Note it unless something was applied meanwhile: the volumes are read one after the other."""
        applied = _applied(controller)
        shown = self.shown(controller)
        still = _applied(controller) == applied
        if still:
            self.history.add(Image(self.now, controller.name, shown))
        return still

    def shown(self, controller: Controller) -> dict[str, tuple[int, ...]]:
        """What each volume shows, by sector: the serial of a write, `ZEROS` or `DAMAGED`."""
        return uvloop.run(self._images(controller))

    async def _images(self, controller: Controller) -> dict[str, tuple[int, ...]]:
        shown: dict[str, tuple[int, ...]] = {}
        for volume in self.history.volumes:
            connection = await NbdConnection.connect(controller.uri(volume))
            shown[volume] = self.history.shown(volume, 0, await connection.read_all())
            await connection.close()
        return shown

    # ---- sites and orders --------------------------------------------------------

    def crashed(self, controller: Controller, how: Literal["kill", "power", "disk", "stop"] = "kill") -> None:
        """Note that a controller is gone."""
        self.history.add(Crashed(self.now, controller.name, how))

    def restarted(self, controller: Controller) -> None:
        """Note that a controller serves again."""
        self.history.add(Restarted(self.now, controller.name))

    def fault(self, name: str, *, stalls: str = "") -> None:
        """Note that a fault begins."""
        self.history.add(FaultBegun(self.now, name, stalls))

    def fault_over(self, name: str) -> None:
        """Note that it has ended."""
        self.history.add(FaultEnded(self.now, name))

    def paired(self, primary: str, secondary: str, groups: Sequence[str], mode: str) -> None:
        """Note that groups were paired."""
        for group in groups:
            number = next(self._request)
            self.history.add(
                Ordered(self.now, number, primary, "pair-create", group, {"secondary": secondary, "mode": mode})
            )
            self.history.add(Answered(self.now, number))

    @contextmanager
    def ordered(self, controller: Controller, name: str) -> Iterator[None]:
        """Note that the block gives an order, and that it was carried out."""
        number = next(self._request)
        self.history.add(Ordered(self.now, number, controller.name, name, ""))
        yield
        self.history.add(Answered(self.now, number))

    def take_over(self, controller: Controller, domain: str = "default") -> None:
        """Order a takeover and note it."""
        with self.ordered(controller, "takeover"):
            controller.takeover(domain)

    def status(self, controller: Controller) -> None:
        """Note what a controller says of its pairs."""
        at = self.now
        for entry in controller.pairs():
            if entry["peer"] is None:
                continue
            self.history.add(
                Status(
                    at, controller.name, entry["group"], entry["role"], entry["state"], entry["peer"],
                    entry["reason"] or "", entry["mode"] or "", None, entry["written"]["seq"], entry["arrived"]["seq"],
                    entry["durable"]["seq"], entry["applied"]["seq"],
                )
            )  # fmt: skip

    def quiet(self) -> None:
        """Note that all faults are over and everything has arrived."""
        self.history.add(Quiet(self.now, 0.0))

    def judge(self) -> None:
        """Raise AssertionError, with what is wrong, if an invariant does not hold."""
        wrong = check(self.history)
        assert not wrong, "\n".join(map(str, wrong[:10]))
