"""The benchmark itself runs, and writes down what it measured; no figure is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_one_job_is_measured_on_a_pair_and_on_a_peer(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.bench", "--quick", "--seconds", "0.5", "--size", "16"),
            *("--only", "async", "--only", "background", "--jobs", "4k random write, depth 32", "--json", str(out)),
        ],
        cwd=_REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    document = json.loads(out.read_text())
    (figures,) = document["rounds"][0].values()
    assert {name for name, one in figures.items() if one["iops"] > 0} == {
        "controllerd, async pair",
        "qemu mirror, background",
    }
    assert [target["reference"] for target in document["targets"]] == ["qemu mirror, background"]
