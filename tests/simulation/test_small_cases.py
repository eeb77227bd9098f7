"""Every workload of up to three operations, every crash point, everything that can be left of it."""

from __future__ import annotations

import itertools

import pytest

from controllerd.storage import journal
from tests.simulation.small_case import OPERATIONS, PIECE, SmallCase


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three writes fill a segment."""
    monkeypatch.setattr(journal, "PIECE_MAX", PIECE)


def test_workloads_of_one_and_two_operations() -> None:
    tried: set[bytes] = set()
    for length in (1, 2):
        for workload in itertools.product(OPERATIONS, repeat=length):
            SmallCase(workload, tried).run()
    assert len(tried) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("first", OPERATIONS)
def test_workloads_of_three_operations(first: str) -> None:
    tried: set[bytes] = set()
    for rest in itertools.product(OPERATIONS, repeat=2):
        SmallCase((first, *rest), tried).run()
    assert len(tried) > 500
