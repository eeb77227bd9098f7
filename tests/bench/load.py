"""Everything at once that hosts do to one volume, until it is told to stop.

Owns: the mix, as one fio process, and clients that ask and never take an answer. Never: measures.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
from pathlib import Path

from deploy.demo.processes import Process, ProgramFailed
from tests.unit.targets.nbd import client

_MIX = (
    ("commit", "randwrite", 4096, 1, "--fsync=1"),
    ("database", "randrw", 4096, 32, "--rwmixread=70"),
    ("backup", "read", 1 << 20, 4, ""),
    ("restore", "write", 131072, 8, ""),
    ("discard", "randtrim", 65536, 4, "--rate_iops=40"),
)
"""Name, pattern, bytes of a request, depth, more options. Space that is discarded comes back with a checkpoint only, so
discarding faster would fill the pool."""
_STUCK_REQUESTS = 1000


class MixedLoad:
    """The load, from construction on and for ``limit_s`` seconds at most, should nobody be left to stop it.

    ``size``: the volume's, in bytes; ``log`` gets what fio says.
    """

    def __init__(self, uri: str, size: int, log: Path, limit_s: float) -> None:
        self._log = log
        words = ["fio", "--ioengine=nbd", f"--uri={uri}", f"--size={size}", "--norandommap", "--time_based"]
        words += [f"--runtime={limit_s:.0f}", "--group_reporting", "--random_generator=tausworthe64"]
        for name, pattern, block, depth, more in _MIX:
            words += [f"--name={name}", f"--rw={pattern}", f"--bs={block}", f"--iodepth={depth}", *more.split()]
        self._process = Process(words, log)

    def check(self) -> None:
        """Raise ProgramFailed if it has ended by itself, or a request got an error."""
        self._process.check()
        if "io_u error" in self._log.read_text(errors="replace"):
            raise ProgramFailed(f"a request failed\n{self._process.log_end()}")

    def stop(self) -> None:
        """End it."""
        self._process.stop(signal.SIGINT)


def stuck_client(path: Path, volume: str, length: int) -> socket.socket:
    """Return a client on the UNIX socket ``path`` that asks for ``length`` bytes many times and takes no answer."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20.0)
    sock.connect(str(path))
    sock.sendall(struct.pack(">I", 3) + client.option(client.EXPORT_NAME, volume.encode()))
    answer = b""
    while len(answer) < 28:  # greeting, size and flags
        part = sock.recv(28 - len(answer))
        if not part:
            raise ConnectionError(f"{path}: closed in the handshake")
        answer += part
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for number in range(_STUCK_REQUESTS):
            sock.sendall(client.request(client.READ, number, 0, length))
    return sock
