from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.units import SIZE_MAX, format_size, parse_size

GOOD = [
    (0, 0), ("0", 0), ("4096", 4096), ("1k", 1024), ("1KiB", 1024), ("1 kB", 1000), ("64MiB", 64 << 20),
    ("1.5G", 3 << 29), ("10GB", 10**10), ("2TiB", 2 << 40), ("1PiB", 1 << 50), ("12 B", 12), ("7bytes", 7),
]  # fmt: skip
BAD = ["", " ", "-1", "1.5", "1e9", "0x10", "MiB", "1 M i B", "1MiBit", "٣MiB", "1.0001KiB", "9" * 50, "5000PiB", "²",
       -1, SIZE_MAX + 1, True, None, 1.0, [], b"1"]  # fmt: skip


@pytest.mark.parametrize(("text", "size"), GOOD)
def test_size_is_understood(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_size_is_refused_in_one_line(text: object) -> None:
    with pytest.raises(ValueError) as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert 0 <= parse_size(text) <= SIZE_MAX
    except ValueError:
        pass


@given(st.integers(0, SIZE_MAX))
def test_exact_sizes_come_back(size: int) -> None:
    text = format_size(size)
    if "." not in text:
        assert parse_size(text) == size


def test_sizes_for_people() -> None:
    assert [format_size(size) for size in (0, 1023, 1024, 1536, 64 << 20, (1 << 30) + 1)] == [
        "0 B", "1023 B", "1 KiB", "1.5 KiB", "64 MiB", "1.0 GiB",
    ]  # fmt: skip
