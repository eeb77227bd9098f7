"""The difference map against a set of numbers, and its stored form."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.bitmap import DifferenceMap
from controllerd.model.errors import BadOrder, Corrupt

REGIONS = 77
Change = tuple[str, int, int]
changes = st.lists(
    st.tuples(st.sampled_from(("set", "range", "clear")), st.integers(0, REGIONS - 1), st.integers(0, 40)), max_size=30
)


def build(changes: list[Change]) -> tuple[DifferenceMap, set[int]]:
    """The same changes made to a map and to a set."""
    bitmap, model = DifferenceMap(REGIONS), set[int]()
    for what, first, count in changes:
        count = min(count, REGIONS - first)
        if what == "set":
            bitmap.set(first)
            model.add(first)
        elif what == "range":
            bitmap.set_range(first, count)
            model |= set(range(first, first + count))
        else:
            bitmap.clear(first, count)
            model -= set(range(first, first + count))
    return bitmap, model


@given(changes=changes)
def test_map_is_a_set_of_regions(changes: list[Change]) -> None:
    bitmap, model = build(changes)
    assert {region for region in range(-1, REGIONS + 1) if region in bitmap} == model
    assert bitmap.count() == len(model)


@given(changes=changes)
def test_runs_are_the_longest_and_ascending(changes: list[Change]) -> None:
    bitmap, model = build(changes)
    runs = list(bitmap.runs())
    assert [region for first, count in runs for region in range(first, first + count)] == sorted(model)
    assert all(first + count < following for (first, count), (following, _) in pairwise(runs))


@given(changes=changes)
def test_stored_map_is_restored(changes: list[Change]) -> None:
    bitmap, _ = build(changes)
    assert DifferenceMap.from_bytes(bitmap.to_bytes()) == bitmap


@given(one=changes, two=changes)
def test_union_marks_what_either_has(one: list[Change], two: list[Change]) -> None:
    bitmap, model = build(one)
    other, other_model = build(two)
    bitmap.union(other)
    assert {region for region in range(REGIONS) if region in bitmap} == model | other_model
    assert other == build(two)[0]


@pytest.mark.parametrize("regions", [0, 1, 8, 9, 64])
def test_whole_map_is_one_run(regions: int) -> None:
    bitmap = DifferenceMap(regions)
    bitmap.set_range(0, regions)
    assert list(bitmap.runs()) == ([(0, regions)] if regions else [])
    assert bitmap.count() == regions
    bitmap.clear(0, regions)
    assert bitmap == DifferenceMap(regions)


def test_large_map_is_walked_by_its_runs() -> None:
    bitmap = DifferenceMap(1 << 24)
    bitmap.set_range(3, (1 << 23) + 1)
    bitmap.set((1 << 24) - 1)
    assert list(bitmap.runs()) == [(3, (1 << 23) + 1), ((1 << 24) - 1, 1)]


def test_runs_are_not_disturbed_by_changes_on_the_way() -> None:
    bitmap = DifferenceMap(100)
    bitmap.set_range(0, 10)
    bitmap.set_range(50, 10)
    seen = []
    for first, count in bitmap.runs():
        bitmap.clear(first, count)
        bitmap.set(30)
        seen.append((first, count))
    assert seen == [(0, 10), (50, 10)]
    assert list(bitmap.runs()) == [(30, 1)]


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 78), (77, 1), (70, 8), (5, -1)])
def test_range_outside_the_map_is_refused_and_changes_nothing(first: int, count: int) -> None:
    bitmap = DifferenceMap(REGIONS)
    with pytest.raises(BadOrder):
        bitmap.set_range(first, count)
    with pytest.raises(BadOrder):
        bitmap.clear(first, count)
    assert bitmap.count() == 0


def test_region_outside_the_map_is_refused() -> None:
    bitmap = DifferenceMap(REGIONS)
    for region in (-1, REGIONS):
        with pytest.raises(BadOrder):
            bitmap.set(region)
    with pytest.raises(BadOrder):
        DifferenceMap(-1)
    with pytest.raises(BadOrder):
        bitmap.union(DifferenceMap(REGIONS + 1))


def test_every_flipped_bit_and_every_cut_of_a_stored_map_is_detected() -> None:
    bitmap = DifferenceMap(REGIONS)
    bitmap.set_range(9, 30)
    stored = bitmap.to_bytes()
    for position in range(len(stored)):
        with pytest.raises(Corrupt):
            DifferenceMap.from_bytes(stored[:position])
        for bit in range(8):
            damaged = bytearray(stored)
            damaged[position] ^= 1 << bit
            with pytest.raises(Corrupt):
                DifferenceMap.from_bytes(bytes(damaged))


@given(stored=st.binary(max_size=64))
def test_any_bytes_are_a_map_or_corrupt(stored: bytes) -> None:
    try:
        assert DifferenceMap.from_bytes(stored).to_bytes() == stored
    except Corrupt:
        pass
