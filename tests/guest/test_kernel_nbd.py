"""A real kernel's NBD client, with ext4 on a volume of a real controller that is killed under it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deploy.demo.orders import Orders
from deploy.demo.site import Site
from tests.guest.virtual_machine import find_guestvm, run_in_guest

_SCRIPT = Path(__file__).with_name("kernel_nbd.sh")


@pytest.mark.timeout(400)
async def test_kernel_keeps_ext4_on_a_volume_across_kill_and_restart_of_the_controller(tmp_path: Path) -> None:
    find_guestvm()
    site = Site(tmp_path)
    controller, orders = site.c, Orders(site.client_file)

    async def kill_and_restart() -> None:
        await asyncio.to_thread(controller.kill)
        await asyncio.to_thread(controller.start)

    try:
        controller.start()
        orders.ask("disk", "create", "C:disk", "--size", "256MiB")
        orders.ask("pool", "create", "C:pool", "--disk", "disk")
        orders.ask("group", "create", "C:group")
        orders.ask("volume", "create", "C:ext4", "--size", "128MiB", "--pool", "pool", "--group", "group")
        result = await run_in_guest(
            _SCRIPT,
            tmp_path,
            {"NBD_PORT": controller.hosts.rpartition(":")[2], "NBD_EXPORT": "ext4"},
            {"server-killed": kill_and_restart},
        )
        print(result.console)
        assert result.status == 0
        assert "== done" in result.console
        sessions = orders.ask("volume", "show", "C:ext4")["sessions"]
        assert sessions == [], "the kernel's connections are gone, and so must be their sessions"
    finally:
        site.stop()
