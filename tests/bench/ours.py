"""This system as a subject of the benchmark: one controller, or two with a pair, with default settings.

Owns: their configurations, and the orders that make the volume. Never: tunes anything that a user would not get.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Literal

from deploy.demo.orders import Orders
from deploy.demo.processes import Process, ProgramFailed, run
from tests.bench.report import ALONE, ASYNC_PAIR, SYNC_PAIR
from tests.bench.subject import LOOPBACK, Endpoint, Subject

_TOKEN = "benchmark-token-0123456789"
_SETTLE_LIMIT_S = 300.0
_NAMES = ("P", "S")
_VOLUME = "bench"


def _configuration(name: str, serial: int, peer: str | None, where: Endpoint) -> str:
    listen = f"unix:{name}/nbd.sock" if where.port is None else f"{LOOPBACK}:{where.port}"
    text = f"""
        [controller]
        name = "{name}"
        serial = {serial}
        data_directory = "{name}"
        [nbd]
        listen = ["{listen}"]
        [management]
        listen = "unix:{name}/management.sock"
        token = "{_TOKEN}"
        [logging]
        level = "warning"
    """
    if peer is not None:
        text += f"""
        [replication]
        listen = "unix:{name}/transfer.sock"
        shared_key_file = "key"
        [[peer]]
        name = "{peer}"
        address = "unix:{peer}/transfer.sock"
        """
    return text


class Alone(Subject):
    """One controller, one volume, no pair."""

    name = ALONE

    def start(self, directory: Path, image: Path) -> str:
        return self._start(directory, image, _NAMES[:1])

    def _start(self, directory: Path, image: Path, names: tuple[str, ...]) -> str:
        size = image.stat().st_size
        (directory / "key").write_text("benchmark-key-0123456789abcdef")
        client_file = directory / "mgmtctl.toml"
        client_file.write_text(
            "".join(
                f'[controllers.{name}]\nurl = "unix:{name}/management.sock"\ntoken = "{_TOKEN}"\n' for name in names
            )
        )
        self._orders = Orders(client_file)
        endpoints = [Endpoint(directory / name, tcp=self.tcp) for name in names]
        for serial, (name, where) in enumerate(zip(names, endpoints, strict=True), start=1):
            (directory / name).mkdir()
            peer = next((other for other in names if other != name), None)
            config = directory / f"{name}.toml"
            config.write_text(_configuration(name, serial, peer, where))
            process = Process([sys.executable, "-m", "controllerd", "--config", config], directory / f"{name}.log")
            self.processes.append(process)
            process.wait_until_it_listens(where.address)
            process.wait_until_it_listens(directory / name / "management.sock")
            self._orders.ask("disk", "create", f"{name}:disk", "--size", str(size + (64 << 20)))
            self._orders.ask("pool", "create", f"{name}:pool", "--disk", "disk")
            self._orders.ask("group", "create", f"{name}:group")
            self._orders.ask(
                "volume", "create", f"{name}:{_VOLUME}", "--size", str(size), "--pool", "pool", "--group", "group"
            )
        self._make_pair()
        uri = endpoints[0].uri(_VOLUME)
        run("nbdcopy", "--flush", image, uri)
        return uri

    def _make_pair(self) -> None:
        """Nothing to do without a second controller."""

    def settle(self) -> None:
        """Wait until every write is on the disks, and at the secondary."""
        deadline = time.monotonic() + _SETTLE_LIMIT_S
        while not self._settled():
            for process in self.processes:
                process.check()
            if time.monotonic() > deadline:
                raise ProgramFailed(f"{self.name} did not settle in {_SETTLE_LIMIT_S:.0f} s")
            time.sleep(0.2)

    def _settled(self) -> bool:
        names = _NAMES[: len(self.processes)]
        if any(self._orders.ask("system", "show", "--controller", name)["cache_used_bytes"] for name in names):
            return False
        controllers: list[dict[str, Any]] = self._orders.ask("status")["controllers"]
        return not any(group["lag_bytes"] for controller in controllers for group in controller["groups"])


class Pair(Alone):
    """Two controllers with a pair, and the volume on the primary."""

    copies = True

    def __init__(self, mode: Literal["async", "sync"]) -> None:
        super().__init__()
        self.name = ASYNC_PAIR if mode == "async" else SYNC_PAIR
        self._mode = mode

    def start(self, directory: Path, image: Path) -> str:
        return self._start(directory, image, _NAMES)

    def _make_pair(self) -> None:
        self._orders.ask("pair", "create", "P:group", "S:group", "--mode", self._mode)
