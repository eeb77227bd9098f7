"""The host port as a process of its own, for the interop tests.

Owns: starting, stopping and killing `nbd_serve`, and its addresses.
Never: ends a process that it did not start.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


class NbdServed:
    """One running server with the volumes ``vol``, ``small`` and ``fixed`` (read-only)."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.socket = directory / "nbd.sock"
        self.arguments = arguments
        self.port = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        with (self.directory / "errors.log").open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.interop.nbd_serve", str(self.directory), *self.arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready "):
                self.port = int(line.split()[-1].rpartition(":")[2])
                return process
        raise AssertionError(f"server did not start: {self.errors()}")

    def errors(self) -> str:
        """Return what the server wrote to standard error."""
        return (self.directory / "errors.log").read_text()

    def uri(self, volume: str = "vol") -> str:
        """Return the URI of a volume over the UNIX socket."""
        return f"nbd+unix:///{volume}?socket={self.socket}"

    def tcp_uri(self, volume: str = "vol") -> str:
        """Return the URI of a volume over TCP."""
        return f"nbd://127.0.0.1:{self.port}/{volume}"

    def events(self) -> str:
        """Return what the server reported."""
        return (self.directory / "events.log").read_text()

    def open_files(self) -> int:
        """Return how many file descriptors the server has, those of journal segments (which come and go) aside."""
        count = 0
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += descriptor.readlink().suffix != ".seg"
        return count

    def resident(self) -> int:
        """Return the server's memory in bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    def grow_small(self) -> None:
        """Make ``small`` twice as long; it takes effect a moment later."""
        self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End the process as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in an orderly way; anything on standard error is a failure."""
        self._end(signal.SIGTERM)
        assert self.process.returncode == 0
        assert self.errors() == ""

    def restart(self) -> None:
        """Start again on the same data."""
        self.process = self._start()

    def _end(self, number: int) -> None:
        self.process.send_signal(number)
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise


def run_tool(*arguments: str, timeout: float = 120) -> str:
    """Run a client and return what it printed; a failure shows everything it said."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def receive(sock: socket.socket, length: int) -> bytes:
    """Receive exactly ``length`` bytes. Raises ConnectionError if the other side closes before."""
    data = b""
    while len(data) < length:
        part = sock.recv(length - len(data))
        if not part:
            raise ConnectionError("server closed")
        data += part
    return data


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
