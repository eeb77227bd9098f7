"""What all tests share: hypothesis profiles, and marks that follow from where a test lies.

Owns: nothing that a single kind of test needs; that lies beside those tests.
Never: starts processes or opens sockets.
"""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# Two shared cores: how long an example takes says nothing, so no deadline. In CI the examples are the same every time,
# so that a failure comes from the change that is checked; elsewhere every run looks at others.
hypothesis.settings.register_profile("here", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")

_GUEST_TESTS = Path(__file__).parent / "guest"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in ``guest/``, and keep them in one worker: each of them boots a virtual machine."""
    for item in items:
        if item.path.is_relative_to(_GUEST_TESTS):
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group("guest"))
