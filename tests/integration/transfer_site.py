"""A controller without its ports for hosts: storage and pairs in this process, for transfer tests.

Owns: building sites on temporary directories, connecting them over loopback, and writing
to and reading from their volumes as a target would.
Never: stands in for anything: storage, journal and transfer path are the real ones.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from controllerd.model.errors import RemoteCopyError
from controllerd.model.pair_state import Role
from controllerd.replication.pair_record import PairSpec, PairVolume
from controllerd.replication.pairs import PairManager
from controllerd.replication.settings import Endpoint, PeerSettings, ReplicationSettings
from controllerd.storage.group import Group
from controllerd.storage.io import SystemFiles
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from controllerd.storage.volume import Volume
from tests.integration.transfer_proxy import stop_accepting

KEY = b"a shared key for tests, 32 bytes"
BLOCK = 4096
MIB = 1 << 20
SMALL_JOURNAL = {"journal_bytes": 16 * MIB, "segment_bytes": 4 * MIB, "checkpoint_interval_s": 0.2}
"""Storage settings of a site whose journals are four segments."""


class Site:
    """One controller. ``crash`` leaves its files as they are, as kill -9 would."""

    def __init__(self, name: str, directory: Path, **changes: Any) -> None:
        self.name = name
        self.directory = directory
        self.events: list[tuple[str, dict[str, object]]] = []
        self.storage_changes: dict[str, Any] = changes.pop("storage", {})
        self.changes = changes
        self.peers: dict[str, PeerSettings] = {}
        self.port = free_port()
        self.clock_set_ns = 0
        """By how much somebody has set the wall clock."""
        self.files: SystemFiles
        self.storage: StorageSystem
        self.pairs: PairManager

    async def start(self) -> Site:
        """Start or restart."""
        self.files = SystemFiles(threads=2)
        self.storage = StorageSystem(
            StorageSettings(
                **{
                    "data_directory": str(self.directory),
                    "journal_bytes": 32 * MIB,
                    "segment_bytes": 8 * MIB,
                    "cache_bytes": 64 * MIB,
                    "max_request_bytes": MIB,
                    **self.storage_changes,
                }
            ),
            self.files,
            clock=self.clock,
            report=self.report,
            rng=random.Random(self.name),
        )
        await self.storage.start()
        settings = ReplicationSettings(
            controller=self.name,
            serial=sum(self.name.encode()),
            listen=Endpoint("127.0.0.1", self.port),
            peers=self.peers,
            shared_key=KEY,
            tick_interval_s=0.02,
            heartbeat_interval_s=0.05,
            backoff_max_s=0.2,
            mirror_sync_interval_s=0.02,
        )
        settings = dataclasses.replace(settings, **self.changes)
        self.pairs = PairManager(
            self.storage, settings, clock=self.clock, rng=random.Random(self.name), report=self.report
        )
        self.pairs.load()
        await self.pairs.start()
        self.port = self.pairs.port
        return self

    def clock(self) -> int:
        return time.time_ns() + self.clock_set_ns

    def report(self, event: str, facts: dict[str, object]) -> None:
        self.events.append((event, facts))

    def count(self, event: str) -> int:
        """How often an event was reported."""
        return sum(name == event for name, _ in self.events)

    async def stop(self) -> None:
        """Stop in order, for good: the files, hundreds of MiB over all tests, are removed."""
        await stop_accepting(self.pairs._acceptor._server)
        await self.pairs.stop()
        await self.storage.stop()
        shutil.rmtree(self.directory)

    async def crash(self) -> None:
        """Stop as if killed: nothing is destaged or checkpointed any more."""
        await stop_accepting(self.pairs._acceptor._server)
        await self.pairs.stop()
        await self.storage.checkpointer.stop()
        for destager in self.storage.destagers.values():
            await destager.stop()
        self.files.close()  # waits for its threads: a real crash would end them
        self.storage.close()

    # ---- volumes -----------------------------------------------------------------

    def make(self, groups: dict[str, list[str]], size: int = 4 * MIB, **options: Any) -> None:
        """Create a disk, a pool, and groups with volumes of ``size`` bytes."""
        self.storage.create_disk("disk", str(self.directory / "disk0"), 24 * MIB)
        self.storage.create_pool("pool", ["disk"])
        for group, volumes in groups.items():
            self.storage.create_group(group, **options)
            for volume in volumes:
                self.storage.create_volume(volume, size, pool="pool", group=group)

    def group(self, name: str) -> Group:
        return self.storage.groups[name]

    def volume(self, name: str) -> Volume:
        return self.storage.volumes[name]

    def put(self, volume: str, block: int, data: bytes, carried: int | None = None) -> int:
        """Stage and commit one write; returns its number."""
        target = self.volume(volume)
        padded = data.ljust(BLOCK, b"\0")
        sequence = target.group.stage_write(target, block * BLOCK, memoryview(padded), carried)
        target.group.commit()
        return sequence

    async def write(self, volume: str, block: int, data: bytes, carried: int | None = None) -> int:
        """A host write: returns when it is acknowledged, or raises the error the host gets."""
        sequence = self.put(volume, block, data, carried)
        await wait_for(self.volume(volume).group.when_complete, sequence)
        return sequence

    async def flush(self, volume: str) -> None:
        """A host flush."""
        group = self.volume(volume).group
        await wait_for(group.when_flushed, group.last_seq)

    async def get(self, volume: str, block: int) -> bytes:
        """Content of one block, without the padding."""
        buffer = bytearray(BLOCK)
        target = self.volume(volume)
        if not target.read_into(memoryview(buffer), block * BLOCK):
            await target.read(memoryview(buffer), block * BLOCK)
        return bytes(buffer).rstrip(b"\0")

    async def image(self, volume: str) -> bytes:
        """The whole volume."""
        target = self.volume(volume)
        buffer = bytearray(target.size)
        await target.read(memoryview(buffer), 0)
        return bytes(buffer)


def free_port() -> int:
    """A free port below those that outgoing connections get, so that a stopped site finds it free again."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


async def wait_for(when: Callable[[int, Callable[[RemoteCopyError | None], None]], None], sequence: int) -> None:
    """Await one of a group's horizons."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(error: RemoteCopyError | None) -> None:
        if not done.done():
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

    when(sequence, finish)
    await done


async def until(condition: Callable[[], object], *sites: Site, timeout_s: float = 20.0) -> None:
    """Return when ``condition()`` holds; the loop runs meanwhile. A failure shows where ``sites`` stand."""
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110  # any condition, in any part of the system
                await asyncio.sleep(0.002)
    except TimeoutError:
        found = [f"{site.name}: {site.pairs.status()} {site.events[-10:]}" for site in sites]
        raise AssertionError("never happened; " + "\n".join(found)) from None


def connect(*sites: Site) -> None:
    """Let sites that listen know each other."""
    for site in sites:
        for other in sites:
            if other is not site:
                site.peers[other.name] = PeerSettings(other.name, Endpoint("127.0.0.1", other.port))


@asynccontextmanager
async def connected(a: Site, b: Site, groups: dict[str, list[str]]) -> AsyncIterator[tuple[Site, Site]]:
    """Two sites that run and know each other, with the same ``groups`` of volumes, not paired yet."""
    for site in (a, b):
        await site.start()
        site.make(groups)
    connect(a, b)
    yield a, b
    for site in (a, b):
        await site.stop()


def spec(primary: Site, group: str, secondary: Site, **options: Any) -> PairSpec:
    """The order that pairs ``group`` with the group of the same name and volumes at the other site."""
    volumes = tuple(
        PairVolume(volume.name, volume.name, volume.key, volume.size)
        for volume in primary.group(group).volumes.values()
    )
    return PairSpec(primary.name, group, secondary.name, group, volumes, **options)


async def pair(primary: Site, group: str, secondary: Site, **options: Any) -> str:
    """Create a pair on both sides and wait for the connection; returns its id."""
    order = spec(primary, group, secondary, **options)
    await secondary.pairs.create(Role.SECONDARY, order)
    await primary.pairs.create(Role.PRIMARY, order)
    await until(lambda: primary.pairs.primaries[order.identity].sender.connected)
    return order.identity


async def caught_up(primary: Site, secondary: Site, *groups: str) -> None:
    """Wait until the secondary shows everything that the primary's groups have now."""
    for name in groups:
        last = primary.group(name).last_seq
        intake = secondary.pairs.secondaries[f"{primary.name}:{name}-{secondary.name}:{name}"].intake
        await until(lambda intake=intake, last=last: intake.applied_seq >= last, primary, secondary)  # type: ignore[misc]
