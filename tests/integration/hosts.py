"""Simulated hosts as processes, for tests with real controllers: ``hostsim`` as anyone would run it.

Owns: its command lines, and the verdicts in its exit codes. Never: judges an image itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.demo.processes import Process
from tests.integration.harness import WAIT_LIMIT_S, HarnessFailed


class Hosts:
    """A hostsim process at work, with the record it keeps. A context manager: it is ended with the block."""

    def __init__(self, command: str, arguments: Sequence[str], record: Path) -> None:
        self.record = record
        self._output = record.with_suffix(".log")
        words = [sys.executable, "-m", "hostsim", command, *arguments, "--record", str(record), "--json"]
        self._process = Process(words, self._output)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop(signal.SIGKILL)

    def wait_for_progress(self, bytes_more: int = 2_000) -> None:
        """Return when more was acknowledged than when this was called. Raises ProgramFailed if the hosts ended."""
        before = self._recorded()
        self._process.wait_for(lambda: self._recorded() >= before + bytes_more)

    def _recorded(self) -> int:
        return self.record.stat().st_size if self.record.exists() else 0

    def wait_until_lost(self) -> dict[str, Any]:
        """Return their result once they have noticed that their volumes are gone. Raises HarnessFailed."""
        return self._result(self._process.wait(WAIT_LIMIT_S), 3)

    def finish(self) -> dict[str, Any]:
        """Tell them to stop and return their result. Raises HarnessFailed if anything was wrong."""
        return self._result(self._process.stop(), 0)

    def _result(self, status: int, expected: int) -> dict[str, Any]:
        said = self._output.read_text()
        if status != expected:
            raise HarnessFailed(f"hostsim ended with status {status}, not {expected}:\n{said}")
        result: dict[str, Any] = json.loads(said.splitlines()[-1])
        return result


def hostsim(*arguments: str | Path, accept: Sequence[int] = (0,)) -> str:
    """Run hostsim to its end and return what it printed. Raises HarnessFailed if its status is not accepted."""
    command = [sys.executable, "-m", "hostsim", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
    if done.returncode not in accept:
        raise HarnessFailed(f"hostsim {arguments[0]}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def volume_options(uris: Sequence[str]) -> list[str]:
    """Return the command line's options that name volumes."""
    return [word for uri in uris for word in ("--volume", uri)]


def check_bank(uris: Sequence[str], record: Path, *, lossless: bool = False) -> dict[str, Any]:
    """Judge the volumes as `hostsim check` does and return its report. Raises HarnessFailed if not consistent."""
    options = ["--lossless"] if lossless else []
    said = hostsim("check", *volume_options(uris), "--record", record, "--json", *options, accept=(0, 1))
    report: dict[str, Any] = json.loads(said)
    if not report["consistent"]:
        shown = "\n".join(violation["text"] for violation in report["violations"][:20])
        raise HarnessFailed(f"{report['violation_count']} violations in {', '.join(uris)}:\n{shown}")
    return report


def same_content(first: str, second: str) -> bool:
    """Compare two exports byte by byte, read by nbdcopy."""
    with tempfile.TemporaryDirectory(prefix="rc-compare-") as directory:
        images = [Path(directory) / name for name in ("first", "second")]
        for uri, image in zip((first, second), images, strict=True):
            subprocess.run(["nbdcopy", uri, str(image)], check=True, timeout=120, stdin=subprocess.DEVNULL)
        return subprocess.run(["cmp", "-s", *map(str, images)], check=False).returncode == 0
