"""The NBD fuzz targets for a moment, with inputs that are the same in every run, and with hypothesis."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import nbd_handshake, nbd_transmission

TARGETS = pytest.mark.parametrize("run", [nbd_handshake.run, nbd_transmission.run], ids=["handshake", "transmission"])


@TARGETS
def test_same_inputs_each_time(run: Callable[[bytes], None]) -> None:
    rng = random.Random(5)
    for number in range(1000):
        data = rng.randbytes(rng.choice([10, 60, 200, 600]))
        # Small numbers are what most decisions are about, and make for sound requests.
        limit = (256, 8, 12, 16)[number % 4]
        run(bytes(byte % limit for byte in data))


@TARGETS
@settings(max_examples=100)
@given(data=st.binary(max_size=400))
def test_any_input(run: Callable[[bytes], None], data: bytes) -> None:
    run(data)
