"""What is measured: something that serves one volume over NBD on a UNIX socket.

Owns: the interface that all servers under test share, and what they are filled with.
Never: measures.
"""

from __future__ import annotations

import abc
import os
import random
import shutil
import socket
from pathlib import Path

from deploy.demo.processes import Process

LOOPBACK = "127.0.0.1"
_CHUNK_BYTES = 1 << 20


class Subject(abc.ABC):
    """One server, or several that replicate, seen by a client as one NBD export.

    name: how the report calls it. copies: whether a second server gets every write. tcp: served over TCP, else over a
    UNIX socket.
    """

    name: str
    copies: bool = False

    def __init__(self, *, tcp: bool = False) -> None:
        self.tcp = tcp
        self.processes: list[Process] = []

    @abc.abstractmethod
    def start(self, directory: Path, image: Path) -> str:
        """Serve a volume with the content of ``image``, keeping everything in ``directory``; return its NBD URI."""

    def settle(self) -> None:  # noqa: B027 -- most servers have nothing left to do once the client is answered
        """Return when work left behind by the last client is done, so that the next measurement does not pay for it."""

    def stop(self) -> None:
        """End all processes, the ones started last first."""
        while self.processes:
            self.processes.pop().stop()


def make_image(path: Path, size: int) -> None:
    """Write ``size`` bytes (a multiple of 1 MiB) that do not compress and hold no hole; the same for the same size."""
    chunk = random.Random(size).randbytes(_CHUNK_BYTES)
    with path.open("wb") as image:
        for position in range(0, size, _CHUNK_BYTES):
            image.write(position.to_bytes(8, "big") + chunk[8:])
        image.flush()
        os.fsync(image.fileno())


def copy_image(image: Path, to: Path) -> Path:
    """Copy ``image`` with its data, and return ``to``."""
    shutil.copyfile(image, to)
    return to


class Endpoint:
    """Where a server is reached: a UNIX socket in ``directory``, or a free TCP port on loopback."""

    def __init__(self, directory: Path, *, tcp: bool) -> None:
        self.port = _free_port() if tcp else None
        self.path = directory / "nbd.sock"

    @property
    def address(self) -> Path | tuple[str, int]:
        """For connecting to it."""
        return self.path if self.port is None else (LOOPBACK, self.port)

    def uri(self, export: str = "") -> str:
        """The NBD URI of ``export``."""
        return unix_uri(self.path, export) if self.port is None else f"nbd://{LOOPBACK}:{self.port}/{export}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def unix_uri(socket_path: Path, export: str = "") -> str:
    """The NBD URI of ``export`` on a UNIX socket."""
    return f"nbd+unix:///{export}?socket={socket_path}"
