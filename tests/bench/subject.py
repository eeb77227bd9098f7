"""What is measured: something that serves one volume over NBD on a UNIX socket.

Owns: the interface that all servers under test share, and what they are filled with.
Never: measures.
"""

from __future__ import annotations

import abc
import os
import random
import shutil
from pathlib import Path

from deploy.demo.processes import Process

_CHUNK_BYTES = 1 << 20


class Subject(abc.ABC):
    """One server, or several that replicate, seen by a client as one NBD export.

    name: how the report calls it. copies: whether a second server gets every write.
    """

    name: str
    copies: bool = False

    def __init__(self) -> None:
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


def unix_uri(socket_path: Path, export: str = "") -> str:
    """The NBD URI of ``export`` on a UNIX socket."""
    return f"nbd+unix:///{export}?socket={socket_path}"
