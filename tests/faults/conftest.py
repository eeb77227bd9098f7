"""How much of the fault matrix runs: a sample, or with REMOTECOPY_FAULTS=all (`make faults`) the whole."""

from __future__ import annotations

import pytest

from tests.faults.matrix import WHOLE


def pytest_report_header() -> str:
    """Say which it is."""
    return f"faults on real processes: {'the whole matrix' if WHOLE else 'a sample; make faults runs the whole'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each starts processes and waits for them."""
    for item in items:
        if "tests/faults" in str(item.path):
            item.add_marker(pytest.mark.slow)
