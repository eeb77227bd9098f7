"""Fixtures of the interop tests; each part prefixes its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.nbd_served import NbdServed


@pytest.fixture(scope="module")
def nbd_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NbdServed]:
    """One server for all tests of a module, which must not depend on its content."""
    served = NbdServed(tmp_path_factory.mktemp("nbd"))
    yield served
    served.stop()


@pytest.fixture
def nbd_own(tmp_path: Path) -> Iterator[NbdServed]:
    """A server for one test, which may do anything to it."""
    served = NbdServed(tmp_path)
    yield served
    if served.process.poll() is None:
        served.kill()
