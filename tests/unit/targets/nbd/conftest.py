"""Fixtures of the NBD target's unit tests."""

from __future__ import annotations

import pytest

from tests.unit.targets.nbd.host import Host


@pytest.fixture(params=[True, False], ids=["structured", "simple"])
def host(request: pytest.FixtureRequest) -> Host:
    return Host(structured=request.param)
