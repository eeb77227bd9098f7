"""The file system under a controller fills up and gets room again (F10): errors, never losses, and it recovers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.recorder import Recorder
from tests.faults.topology import GROUPS, SETTINGS, again
from tests.integration.harness import Site, reported

SIZE_BYTES = 160 << 20


@contextmanager
def small_file_system(directory: Path, size: int) -> Iterator[None]:
    """Mount an empty tmpfs over ``directory``."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(path: Path, *, leave: int) -> None:
    """Take all space but ``leave`` bytes."""
    # Without a buffer: what is left in one when the space is used up would make closing the file fail, too.
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    os.truncate(path, max(0, path.stat().st_size - leave))


@pytest.mark.parametrize("leave", [0, 64 << 10, 1 << 20])
@pytest.mark.parametrize("killed", [False, True], ids=["goes on", "killed while full"])
def test_full_file_system(leave: int, killed: bool) -> None:
    recorder = Recorder(GROUPS, seed=leave + killed)
    with Site(["C"], SETTINGS) as site, reported(site, leave=leave, killed=killed):
        controller = site["C"]
        with small_file_system(controller.directory / "data", SIZE_BYTES):
            site.start()
            controller.post("/v1/disks", {"name": "disk", "size": 32 << 20})
            controller.post("/v1/pools", {"name": "pool", "disks": ["disk"]})
            for group, volumes in GROUPS.items():
                controller.create_group(group, dict(volumes))
            recorder.work(controller, steps=20)
            filler = controller.directory / "data" / "filler"
            recorder.fault("F10 full", stalls="C")
            fill(filler, leave=leave)
            recorder.work(controller, steps=60, limit_s=10)
            assert not controller.gone(), "a full file system ended the daemon"
            if killed:
                controller.kill()
            filler.unlink()
            if killed:
                again(recorder, controller)
            recorder.fault_over("F10 full")
            recorder.work(controller, steps=40)
            recorder.image(controller)
            controller.kill()
            again(recorder, controller)
            controller.kill()
    recorder.judge()
