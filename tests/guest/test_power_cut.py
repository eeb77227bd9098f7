"""A real kernel's file system loses its power while a pair copies its volume; the secondary is taken over."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.orders import Orders
from deploy.demo.processes import run
from deploy.demo.site import Site
from tests.guest.virtual_machine import find_guestvm, run_in_guest
from tests.integration.harness import wait_for

_HERE = Path(__file__).parent
FILES_MIN = 10


def _synced(console: str) -> dict[str, str]:
    """The files that the guest was promised, and their checksums; not from a line that is cut off."""
    lines = [line.split() for line in console.splitlines(keepends=True) if line.endswith("\n")]
    return {words[2]: words[1] for words in lines if words[:1] == ["SYNCED"] and len(words) == 3}


def _check_file_system(uri: str, directory: Path) -> Path:
    """Demand that ext4 on the export is whole once its journal is replayed; returns where its files are then."""
    image, files = directory / "image", directory / "files"
    run("nbdcopy", uri, image)
    # Beside the replay it may only do what any power cut makes necessary: free orphans, and count anew.
    run("e2fsck", "-f", "-p", image, accept=(0, 1))
    run("e2fsck", "-f", "-n", image)
    files.mkdir()
    run("debugfs", "-R", f'rdump /files "{files}"', image)
    return files / "files"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_file_system_is_whole_at_the_secondary_after_a_power_cut(mode: str, tmp_path: Path) -> None:
    find_guestvm()
    site = Site(tmp_path)
    try:
        console = await _cut_and_take_over(site, mode, tmp_path)
        promised = _synced(console)
        assert len(promised) >= FILES_MIN, console
        files = await asyncio.to_thread(_check_file_system, site.a.uri("vol"), tmp_path)
    finally:
        site.stop()
    found = {name: hashlib.sha256((files / name).read_bytes()).hexdigest() for name in promised}
    assert found == promised
    print(f"{mode}: {len(promised)} files were synced, and are at the secondary")


async def _cut_and_take_over(site: Site, mode: str, directory: Path) -> str:
    """Returns the guest's console."""
    orders = Orders(site.client_file)
    for controller in (site.c, site.a):
        controller.start()
        orders.ask("disk", "create", f"{controller.name}:disk", "--size", "512MiB")
        orders.ask("pool", "create", f"{controller.name}:pool", "--disk", "disk")
    orders.ask("group", "create", "C:group")
    orders.ask("volume", "create", "C:vol", "--size", "128MiB", "--pool", "pool", "--group", "group")
    orders.ask("pair", "create", "C:group", "A:group", "--mode", mode, "--create-secondary", "--pool", "pool")
    count = random.randint(FILES_MIN, 4 * FILES_MIN)
    result = await run_in_guest(
        _HERE / "power_cut.sh",
        directory,
        {"NBD_PORT": site.c.hosts.rpartition(":")[2], "NBD_EXPORT": "vol"},
        {},
        files=[_HERE / "nbd_lib.sh"],
        power_cut=lambda console: len(_synced(console)) >= count,
    )
    assert result.status < 0, result.console
    if mode == "async":  # what was synced is at the primary only, until it has arrived
        await asyncio.to_thread(wait_for, "all to arrive", lambda: _arrived(orders))
    site.c.kill()
    orders.ask("takeover", "A", "--yes")
    return result.console


def _arrived(orders: Orders) -> bool:
    told = orders.ask("status", "-c", "C", "-c", "A")["controllers"]
    sides: dict[str, Any] = {entry["role"]: entry for controller in told for entry in controller["groups"]}
    return bool(sides["secondary"]["durable"]["seq"] >= sides["primary"]["written"]["seq"])
