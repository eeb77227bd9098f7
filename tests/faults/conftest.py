"""The fault matrix on real processes takes long: it runs with REMOTECOPY_FAULTS=all (`make faults`) or =sample only."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each starts processes and waits for them."""
    for item in items:
        if "tests/faults" in str(item.path):
            item.add_marker(pytest.mark.slow)
            if "REMOTECOPY_FAULTS" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="make faults runs it"))
