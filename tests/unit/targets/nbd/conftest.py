"""Fixtures of the NBD target's unit tests."""

from __future__ import annotations

import pytest

from controllerd.targets.nbd.framing import EXTENDED, SIMPLE, STRUCTURED
from tests.unit.targets.nbd.host import Host


@pytest.fixture(params=[STRUCTURED, SIMPLE, EXTENDED], ids=["structured", "simple", "extended"])
def host(request: pytest.FixtureRequest) -> Host:
    return Host(framing=request.param)
