"""Three controllers on this machine, from the example configurations beside this folder.

Owns: their directory with configurations, keys and tokens; free ports; start and kill of the daemons.
Never: gives orders; those go through mgmtctl.
"""

from __future__ import annotations

import re
import secrets
import signal
import socket
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from deploy.demo.processes import Process

_EXAMPLES = Path(__file__).resolve().parents[1]
_LOOPBACK_PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+")


class Controller:
    """One daemon: where its configuration and log lie, and where hosts and management reach it."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.directory = config.parent
        document = tomllib.loads(config.read_text())
        self.name: str = document["controller"]["name"]
        self.management: str = document["management"]["listen"]
        self._secrets: list[str] = [document["management"]["token_file"], document["replication"]["shared_key_file"]]
        self.hosts: str = document["nbd"]["listen"][0]
        self._process: Process | None = None

    def uri(self, volume: str) -> str:
        """The NBD URI of one of its volumes."""
        return f"nbd://{self.hosts}/{volume}"

    def make_secrets(self) -> None:
        """Write the token and key files that the configuration names, where they are not there yet."""
        for name in self._secrets:
            path = self.directory / name
            if not path.exists():
                path.touch(mode=0o600)
                path.write_text(secrets.token_hex(32) + "\n")

    def start(self) -> None:
        """Start the daemon and return when both its ports are open. Raises ProgramFailed."""
        log = self.directory / f"{self.name}.log"
        self._process = Process([sys.executable, "-m", "controllerd", "--config", self.config], log)
        for address in (self.management, self.hosts):
            host, _, port = address.rpartition(":")
            self._process.wait_until_it_listens((host, int(port)))

    @property
    def pid(self) -> int:
        """Process id of the running daemon."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End the daemon as a disaster would: kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the daemon in order, if it runs."""
        self._end(signal.SIGTERM)

    def _end(self, with_signal: signal.Signals) -> None:
        if self._process is not None:
            self._process.stop(with_signal)
            self._process = None


class Site:
    """Controllers C, A and B with everything they keep in ``directory``, and the client file for mgmtctl."""

    def __init__(self, directory: Path) -> None:
        configurations = {name: (_EXAMPLES / f"{name}.toml").read_text() for name in ("c", "a", "b", "mgmtctl")}
        moved = _free_ports(configurations.values())
        for name, text in configurations.items():
            (directory / f"{name}.toml").write_text(_LOOPBACK_PORT.sub(lambda match: moved[match[0]], text))
        self.c, self.a, self.b = self.controllers = [Controller(directory / f"{name}.toml") for name in ("c", "a", "b")]
        self.client_file = directory / "mgmtctl.toml"
        for controller in self.controllers:
            controller.make_secrets()

    def stop(self) -> None:
        """End all daemons that still run."""
        for controller in self.controllers:
            controller.stop()


def _free_ports(configurations: Iterable[str]) -> dict[str, str]:
    """A free port for each one that the configurations name: theirs may be in use by a real site on this machine."""
    named = {port for text in configurations for port in _LOOPBACK_PORT.findall(text)}
    held = {port: socket.create_server(("127.0.0.1", 0)) for port in named}
    try:
        return {port: str(one.getsockname()[1]) for port, one in held.items()}
    finally:
        for one in held.values():
            one.close()
