"""The pair state table, wholly."""

from __future__ import annotations

import pytest

from controllerd.model.errors import BadOrder
from controllerd.model.pair_state import TRANSITIONS, PairEvent, PairState, allowed_events, next_state

# Rows: states. Columns: create, create-copy, copied, split, split-forced, fail, resync, takeover, delete.
TABLE = """
SMPL  PAIR COPY  -    -    -    -    -    -   SMPL
COPY   -    -   PAIR  -   PSUS PSUE COPY  -   SMPL
PAIR   -    -    -   PSUS PSUS PSUE PAIR SSWS SMPL
PSUS   -    -    -   PSUS PSUS PSUS COPY SSWS SMPL
PSUE   -    -    -   PSUE PSUE PSUE COPY SSWS SMPL
SSWS   -    -    -    -    -   SSWS  -   SSWS SMPL
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]
CASES = [
    (PairState(row[0]), event, None if cell == "-" else PairState(cell))
    for row in ROWS
    for event, cell in zip(PairEvent, row[1:], strict=True)
]


@pytest.mark.parametrize(("state", "event", "expected"), CASES)
def test_every_event_in_every_state(state: PairState, event: PairEvent, expected: PairState | None) -> None:
    if expected is not None:
        assert next_state(state, event) is expected
        return
    with pytest.raises(BadOrder, match=f"{event} is not possible in state {state}") as caught:
        next_state(state, event)
    assert caught.value.facts["allowed"] == allowed_events(state)


def test_table_covers_every_state_and_event() -> None:
    assert len(CASES) == len(PairState) * len(PairEvent)


def test_orders_are_idempotent() -> None:
    once = {PairEvent.CREATE, PairEvent.CREATE_COPY, PairEvent.COPIED}  # the caller compares parameters
    for (_, event), state in TRANSITIONS.items():
        if event not in once:
            assert next_state(state, event) is state


def test_every_state_can_be_left_and_reached() -> None:
    reached = {PairState.SMPL}
    for _ in PairState:
        reached |= {to for (state, _), to in TRANSITIONS.items() if state in reached}
    assert reached == set(PairState)
    assert all(PairEvent.DELETE in allowed_events(state) for state in PairState)


def test_inconsistent_secondary_is_neither_split_nor_taken_over() -> None:
    assert PairEvent.SPLIT not in allowed_events(PairState.COPY)
    assert PairEvent.TAKEOVER not in allowed_events(PairState.COPY)
