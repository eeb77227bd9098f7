"""Crashes of the real storage system on a simulated disk: every acknowledged promise holds afterwards."""

from __future__ import annotations

import pytest

from controllerd.storage import destage, journal
from tests.simulation.storage_case import MAX_WRITE, Case

CASES = 100
BATCHES = 20


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let segments be small enough that cases fill, roll and recycle them, and long writes be among the writes."""
    monkeypatch.setattr(journal, "PIECE_MAX", MAX_WRITE + 1024)
    monkeypatch.setattr(destage, "LONG_WRITE", MAX_WRITE)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_recovers_a_prefix_that_covers_every_promise(batch: int) -> None:
    for seed in range(batch * CASES, (batch + 1) * CASES):
        try:
            Case(seed).run()
        except BaseException as error:
            error.add_note(f"replay with Case({seed}).run()")
            raise
