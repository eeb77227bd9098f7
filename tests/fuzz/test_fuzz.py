"""The fuzz targets for a moment, with inputs that are the same in every run, and with hypothesis."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import TARGETS

SLOW = {
    "catalogue": 150,
    "configuration": 400,
    "data_directory": 60,
    "management": 20,
    "management_port": 10,
    "mgmtctl_answers": 40,
    "transfer_primary": 20,
    "transfer_secondary": 30,
}
"""Targets that make files or whole sites, and how many inputs they get here; the others get 1000."""


@pytest.mark.parametrize("name", TARGETS)
def test_same_inputs_each_time(name: str) -> None:
    run = _target(name)
    rng = random.Random(5)
    for number in range(SLOW.get(name, 1000)):
        data = rng.randbytes(rng.choice([10, 60, 200, 600]))
        # Small numbers are what most decisions are about, and make for sound requests.
        limit = (256, 8, 12, 16)[number % 4]
        run(bytes(byte % limit for byte in data))


@pytest.mark.parametrize("name", TARGETS)
def test_any_input(name: str) -> None:
    run = _target(name)

    @settings(max_examples=SLOW.get(name, 1000) // 10, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(data=st.binary(max_size=400))
    def any_input(data: bytes) -> None:
        run(data)

    any_input()


def _target(name: str) -> Callable[[bytes], None]:
    run: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.{name}").run
    return run
