"""The difference map against a set of numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.bitmap import DifferenceMap, runs
from controllerd.model.errors import BadOrder

GRANULES = 77
Change = tuple[int, int]
changes = st.lists(st.tuples(st.integers(0, GRANULES - 1), st.integers(1, 40)), max_size=30)


def build(changes: list[Change]) -> tuple[DifferenceMap, set[int]]:
    """The same changes made to a map and to a set."""
    bitmap, model = DifferenceMap(GRANULES), set[int]()
    for first, wanted in changes:
        count = min(wanted, GRANULES - first)
        bitmap.set(first, count)
        model |= set(range(first, first + count))
    return bitmap, model


@given(changes=changes, first=st.integers(0, GRANULES - 1), wanted=st.integers(1, GRANULES))
def test_part_of_a_map_is_part_of_a_set(changes: list[Change], first: int, wanted: int) -> None:
    bitmap, model = build(changes)
    count = min(wanted, GRANULES - first)
    part = bitmap.part(first, count)
    assert {first + bit for bit in range(part.bit_length()) if part >> bit & 1} == model & set(
        range(first, first + count)
    )


@given(changes=changes)
def test_runs_are_the_longest_and_cover_the_part(changes: list[Change]) -> None:
    bitmap, model = build(changes)
    found = list(runs(bitmap.part(0, GRANULES), GRANULES))
    marks = [marked for count, marked in found for _ in range(count)]
    assert marks == [granule in model for granule in range(GRANULES)]
    assert all(one != other for (_, one), (_, other) in pairwise(found))


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 78), (77, 1), (70, 8), (5, -1), (5, 0)])
def test_range_outside_the_map_is_refused_and_changes_nothing(first: int, count: int) -> None:
    bitmap = DifferenceMap(GRANULES)
    with pytest.raises(BadOrder):
        bitmap.set(first, count)
    assert bitmap.part(0, GRANULES) == 0


def test_map_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(BadOrder):
        DifferenceMap(-1)
