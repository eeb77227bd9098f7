"""The fault matrix on real processes: a sample in the suite, the whole with REMOTECOPY_FAULTS=all (`make faults`).

REMOTECOPY_FAULTS_MINUTES=n ends it: cases that have not begun by then are skipped. Which ones come first is drawn with
the seed REMOTECOPY_FAULTS_ORDER.

It needs root. Where the machine does not let it do what it has to, it is skipped; in CI it then fails.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_MINUTES = float(os.environ.get("REMOTECOPY_FAULTS_MINUTES") or "inf")
_ORDER = os.environ.get("REMOTECOPY_FAULTS_ORDER", "")
_BEGUN_S = time.monotonic()
_PROGRAMS = ("strace", "mount", "unshare", "ip", "tc", "iptables")
_PROBES = (("unshare", "--mount", "--net", "true"), ("strace", "-o", "/dev/null", "true"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each starts processes and waits for them."""
    matrix = [item for item in items if item.path.is_relative_to(_HERE)]
    missing = _missing() if matrix and os.environ.get("CI") != "true" else ""
    for item in matrix:
        item.add_marker(pytest.mark.slow)
        if missing:
            item.add_marker(pytest.mark.skip(reason=missing))

    if _ORDER:
        random.Random(_ORDER).shuffle(items)  # the same in every worker


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin nothing once the time is up."""
    if time.monotonic() - _BEGUN_S > 60 * _MINUTES:
        pytest.skip(f"{_MINUTES:g} minutes are over (order {_ORDER})")


def _missing() -> str:
    """What the faults cannot be injected for; "": nothing is in the way."""
    if os.geteuid():
        return "injecting faults needs root"
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"injecting faults needs {', '.join(absent)}; deploy/setup test installs it"
    for probe in _PROBES:
        done = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"injecting faults needs what is not allowed here: {' '.join(probe)}: {done.stderr.strip()}"
    return ""
