"""Simulated hosts that move money between volumes: ``hostsim`` as a program, like any user would run it.

Owns: its command lines. Never: knows what makes a copy consistent; ``hostsim check`` does.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo.processes import Finished, Process, run

HOSTS = "mainframe:1,open:2"
_STOP_LIMIT_S = 60
_CHECK_LIMIT_S = 300


@dataclass(frozen=True, slots=True)
class Checked:
    """What ``hostsim check`` says of a copy. transfers: complete ones that it shows; missing_transfers: acknowledged
    ones that it lacks."""

    consistent: bool
    violations: int
    transfers: int
    half_done: int
    missing_transfers: int
    missing_writes: int


class Hosts:
    """The hosts of one bank, whose accounts lie on several volumes and whose log lies on the last one."""

    def __init__(self, directory: Path) -> None:
        self._record = directory / "acknowledged.jsonl"
        self._log = directory / "hostsim.log"
        self._process: Process | None = None

    def begin(self, uris: Sequence[str]) -> None:
        """Make the volumes a bank and start to move money until the volumes are gone. Raises ProgramFailed."""
        print(f"  $ hostsim format {shlex.join(_volumes(uris))} --hosts {HOSTS}", flush=True)
        print(f"    {_hostsim('format', *_volumes(uris), '--hosts', HOSTS).output.strip()}")
        arguments = ["run", *_volumes(uris), "--hosts", HOSTS, "--seconds", "0", "--record", str(self._record)]
        print(f"  $ hostsim {shlex.join(arguments)} &", flush=True)
        self._process = Process([sys.executable, "-m", "hostsim", *arguments, "--json"], self._log)

    def check_running(self) -> None:
        """Raise ProgramFailed if the hosts have stopped by themselves."""
        assert self._process is not None
        self._process.check()

    def wait_until_lost(self) -> dict[str, Any]:
        """Return what the hosts did, once they noticed that their volumes are gone. Raises ProgramFailed."""
        assert self._process is not None
        self._process.wait(_STOP_LIMIT_S)
        self._process = None
        result: dict[str, Any] = json.loads(self._log.read_text().splitlines()[-1])
        return result

    def last_acknowledged(self) -> int:
        """Wall-clock time of the last acknowledgement that any host has recorded, in ns since 1970."""
        lines = (line for line in self._record.read_text().splitlines() if line.startswith("["))
        return max(int(json.loads(line)[2]) for line in lines if line.endswith("]"))

    def stop(self) -> None:
        """End the hosts, if they run."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def check(self, uris: Sequence[str], *, lossless: bool) -> Checked:
        """Judge the image that ``uris`` show against what was acknowledged. Raises ProgramFailed."""
        arguments = ["check", *_volumes(uris), "--record", str(self._record), *(["--lossless"] if lossless else [])]
        print(f"  $ hostsim {shlex.join(arguments)}", flush=True)
        checked = _hostsim(*arguments, "--json", accept=(0, 1))
        report = json.loads(checked.output)
        for violation in report["violations"][:10]:
            print(f"    {violation['text']}")
        return Checked(
            consistent=checked.status == 0,
            violations=report["violation_count"],
            transfers=sum(chain["transfer"] for chain in report["chains"]),
            half_done=sum(chain["begun"] for chain in report["chains"]),
            missing_transfers=report["missing_transfers"],
            missing_writes=report["missing_writes"],
        )


def _volumes(uris: Sequence[str]) -> list[str]:
    return [word for uri in uris for word in ("--volume", uri)]


def _hostsim(*arguments: str, accept: tuple[int, ...] = (0,)) -> Finished:
    return run(sys.executable, "-m", "hostsim", *arguments, accept=accept, limit_s=_CHECK_LIMIT_S)
