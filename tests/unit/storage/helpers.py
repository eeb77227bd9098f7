"""A small storage system on a simulated disk, and one life of it per test."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable

from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Fault, Loss
from tests.simulation.storage_machine import DATA, Machine

SIZE = 1 << 20
SEGMENT = 8 << 20


def make_machine(
    seed: int = 1, *, groups: int = 1, cache: int = 4 << 20, durability: str = "cache", apart: bool = False
) -> Machine:
    """A machine with groups g0.. that have one volume v0.. each of `SIZE` bytes, in one pool on disk d.

    ``apart``: each in a pool p0.. of its own, on a disk d0.. of its own.
    """
    settings = StorageSettings(
        DATA,
        cache_bytes=cache,
        journal_bytes=4 * SEGMENT,
        segment_bytes=SEGMENT,
        max_request_bytes=1 << 20,
        durability="stable" if durability == "stable" else "cache",
    )
    machine = Machine.make(random.Random(seed), settings)

    async def create(system: StorageSystem) -> None:
        if not apart:
            system.create_disk("d", f"{DATA}/disks/d.img", 2 * groups * SIZE)
            system.create_pool("p", ["d"])
        for number in range(groups):
            if apart:
                system.create_disk(f"d{number}", f"{DATA}/disks/d{number}.img", 2 * SIZE)
                system.create_pool(f"p{number}", [f"d{number}"])
            system.create_group(f"g{number}")
            system.create_volume(f"v{number}", SIZE, pool=f"p{number}" if apart else "p", group=f"g{number}")

    assert machine.run(create)
    machine.crash(Loss.NOTHING)  # orders are durable when they return
    return machine


def failing(part: str, *operations: str, times: int = 1 << 30) -> Fault:
    """Fail the next ``times`` of these calls (all: without any) on paths that contain ``part`` with EIO."""
    left = [times]

    def fault(operation: str, path: str, offset: int, length: int) -> None:
        if part in path and (not operations or operation in operations) and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return fault


def live(machine: Machine, scenario: Callable[[StorageSystem], Awaitable[None]]) -> None:
    """Run one life to its end."""
    assert machine.run(scenario)


def content(system: StorageSystem, volume: str) -> Awaitable[bytes]:
    """Read a whole volume."""

    async def read() -> bytes:
        buffer = bytearray(system.volume(volume).size)
        await system.volume(volume).read(memoryview(buffer), 0)
        return bytes(buffer)

    return read()


def put(system: StorageSystem, volume: str, offset: int, data: bytes) -> int:
    """Write and commit."""
    target = system.volume(volume)
    sequence = target.group.stage_write(target, offset, memoryview(data))
    target.group.commit()
    return sequence
