"""deploy/METRICS.md names every metric, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from controllerd.management.metrics import ControllerCollector
from tests.unit.management.fake_controller import fake_controller

PAGE = Path(__file__).parents[3] / "deploy" / "METRICS.md"


async def test_page_and_metrics_agree(tmp_path: Path) -> None:
    async with fake_controller(tmp_path) as controller:
        given = {metric.name for metric in ControllerCollector(controller).collect()}
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == given
