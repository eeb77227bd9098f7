"""``make demo`` as a user runs it: the whole story, from empty directories to the table at the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo_ends_with_every_claim_held() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.demo.run", "--seconds", "4"],
        cwd=_REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "| BAD" not in done.stdout
