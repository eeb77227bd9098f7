"""Programs: run to their end, or started, watched until they are ready, and ended by the id that was started.

Owns: start, readiness and end of a child process, its log file, and the one error for all that can go wrong with it.
Never: knows what a program does, or ends anything it did not start.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

START_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
_LOG_LINES_SHOWN = 15
_ADMINISTRATION = "/usr/sbin:/sbin"  # where e2fsck and others lie, which is not on every user's PATH


class ProgramFailed(Exception):
    """A program refused, ended or stayed silent where it should not; ``str()`` says which, with its own words."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program that has ended left: its exit status, and what it printed."""

    status: int
    output: str


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:{_ADMINISTRATION}"}


def run(*command: str | Path, accept: tuple[int, ...] = (0,), limit_s: float = 180.0) -> Finished:
    """Run a program to its end. Raises ProgramFailed if its status is not in ``accept``, or after ``limit_s``."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=_environment(),
            timeout=limit_s,
            check=False,
        )
    except OSError as error:
        raise ProgramFailed(f"{words[0]} cannot be started: {error}") from error
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"{shlex.join(words)}: no end within {limit_s:.0f} s") from None
    if done.returncode not in accept:
        said = done.stderr.strip() or done.stdout.strip()
        raise ProgramFailed(f"{shlex.join(words)}: status {done.returncode}: {said}")
    return Finished(done.returncode, done.stdout)


class Process:
    """One child process, running from construction on, with its output appended to ``log``.

    Errors: ProgramFailed if it cannot be started.
    """

    def __init__(
        self, arguments: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = Path(arguments[0]).name
        self._log = log
        with log.open("ab") as output:
            try:
                self._child = subprocess.Popen(
                    [str(argument) for argument in arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**_environment(), **(environment or {})},
                )
            except OSError as error:
                raise ProgramFailed(f"{self.name} cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_until_it_listens(self, address: Path | tuple[str, int]) -> None:
        """Return when something accepts connections on a UNIX socket or a TCP port. Raises ProgramFailed."""
        family, where = (socket.AF_UNIX, str(address)) if isinstance(address, Path) else (socket.AF_INET, address)

        def listens() -> bool:
            with socket.socket(family) as probe:
                return probe.connect_ex(where) == 0

        self.wait_for(listens)

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Return when ``ready()`` is true. Raises ProgramFailed if the process ends or it takes too long."""
        deadline = time.monotonic() + START_LIMIT_S
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ProgramFailed(f"{self.name} is not ready after {START_LIMIT_S:.0f} s\n{self.log_end()}")
            time.sleep(0.02)

    def check(self) -> None:
        """Raise ProgramFailed if the process has ended."""
        status = self._child.poll()
        if status is not None:
            raise ProgramFailed(f"{self.name} ended with status {status}\n{self.log_end()}")

    def wait(self, limit_s: float) -> int:
        """Return the exit status once the process has ended by itself; ProgramFailed after ``limit_s`` seconds."""
        try:
            return self._child.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise ProgramFailed(f"{self.name} still runs after {limit_s:.0f} s\n{self.log_end()}") from None

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """End the process, wait for it and return its exit status; one that does not end in time is killed."""
        if self._child.poll() is None:
            self._child.send_signal(with_signal)
            try:
                self._child.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
        return self._child.wait()

    def log_end(self) -> str:
        """The last lines of what the process printed."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])
