"""A real kernel's NBD client, with file systems on a volume of a real controller that is killed under them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.orders import Orders
from deploy.demo.site import Controller, Site
from tests.guest.virtual_machine import find_guestvm, run_in_guest

_HERE = Path(__file__).parent
_LIBRARY = _HERE / "nbd_lib.sh"


class Served:
    """One controller with one volume."""

    def __init__(self, site: Site, size: str) -> None:
        self.controller: Controller = site.c
        self._orders = Orders(site.client_file)
        self.controller.start()
        self._orders.ask("disk", "create", "C:disk", "--size", "1GiB")
        self._orders.ask("pool", "create", "C:pool", "--disk", "disk")
        self._orders.ask("group", "create", "C:group")
        self._orders.ask("volume", "create", "C:vol", "--size", size, "--pool", "pool", "--group", "group")

    @property
    def variables(self) -> dict[str, str]:
        """What the guest's scripts need to know."""
        return {"NBD_PORT": self.controller.hosts.rpartition(":")[2], "NBD_EXPORT": "vol"}

    def sessions(self) -> list[object]:
        """The volume's sessions."""
        found: list[object] = self._orders.ask("volume", "show", "C:vol")["sessions"]
        return found

    async def kill_and_restart(self) -> None:
        """A crash, and a new start on what it left."""
        await asyncio.to_thread(self.controller.kill)
        await asyncio.to_thread(self.controller.start)

    async def has_no_sessions(self) -> None:
        """The kernel's connections are gone, and so must be their sessions, a moment later."""
        for _ in range(100):
            if not await asyncio.to_thread(self.sessions):
                return
            await asyncio.sleep(0.2)
        raise AssertionError(f"sessions are left: {self.sessions()}")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Configurations of three controllers, of which one is used."""
    find_guestvm()
    site = Site(tmp_path)
    yield site
    site.stop()


@pytest.mark.timeout(400)
async def test_kernel_keeps_ext4_on_a_volume_across_kill_and_restart_of_the_controller(
    site: Site, tmp_path: Path
) -> None:
    served = Served(site, "128MiB")
    result = await run_in_guest(
        _HERE / "kernel_nbd.sh",
        tmp_path,
        served.variables,
        {"server-killed": served.kill_and_restart},
        files=[_LIBRARY],
    )
    print(result.console)
    assert result.status == 0
    assert "== done" in result.console
    assert served.sessions() == [], "the kernel's connections are gone, and so must be their sessions"


@pytest.mark.timeout(400)
async def test_kernel_keeps_xfs_across_kill_and_restart_and_disconnects_in_the_middle_of_writes(
    site: Site, tmp_path: Path
) -> None:
    served = Served(site, "512MiB")
    result = await run_in_guest(
        _HERE / "kernel_nbd_xfs.sh",
        tmp_path,
        served.variables,
        {"server-killed": served.kill_and_restart, "disconnected": served.has_no_sessions},
        limit_s=330,
        files=[_LIBRARY],
    )
    print(result.console)
    assert result.status == 0
    assert "== done" in result.console
    await served.has_no_sessions()
