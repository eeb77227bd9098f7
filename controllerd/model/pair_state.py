"""States of a pair, and which order or event leads from which state to which.

Owns: the transition table, the same on both sides of a pair.
Never: knows what is done on a transition, or whether this side is primary or secondary.

Orders are idempotent (spec §7.2): an order whose result is already there leads from the state
to itself. FAIL after a split keeps the state, so that the first reason stays visible (I14).
The table does not know whether the secondary is consistent: a pair that left COPY by a forced
split or a failure is PSUS or PSUE like any other, and whoever orders a takeover checks the
consistency label as well (I15).

Source: spec §7.1-7.2; VC ¶39-44; BK ¶17.
"""

from __future__ import annotations

import enum
from typing import Final

from controllerd.model.errors import BadOrder


class PairState(enum.StrEnum):
    """State of a pair."""

    SMPL = "SMPL"
    """No pair."""
    COPY = "COPY"
    """Initial copy or resync copy is under way; the secondary is not consistent."""
    PAIR = "PAIR"
    """Duplex: every write reaches the secondary."""
    PSUS = "PSUS"
    """Split by order."""
    PSUE = "PSUE"
    """Split by failure."""
    SSWS = "SSWS"
    """Taken over: the secondary is writable."""


class PairEvent(enum.StrEnum):
    """Order or event that can change the state."""

    CREATE = "create"
    """Pair of volumes that are equal without a copy, as empty ones are."""
    CREATE_COPY = "create-copy"
    """Pair whose secondary needs the initial copy."""
    COPIED = "copied"
    """The copy is complete and verified."""
    SPLIT = "split"
    SPLIT_FORCED = "split-forced"
    """Split that accepts an inconsistent secondary."""
    FAIL = "fail"
    RESYNC = "resync"
    TAKEOVER = "takeover"
    DELETE = "delete"


class Role(enum.StrEnum):
    """Side of a pair."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


_S = PairState
_E = PairEvent

TRANSITIONS: Final[dict[tuple[PairState, PairEvent], PairState]] = {
    (_S.SMPL, _E.CREATE): _S.PAIR,
    (_S.SMPL, _E.CREATE_COPY): _S.COPY,
    (_S.SMPL, _E.DELETE): _S.SMPL,
    # A plain split is refused during COPY: it would leave a secondary of no use (spec §7.1).
    # So is a takeover: an image that is not consistent is never promoted (I15).
    (_S.COPY, _E.COPIED): _S.PAIR,
    (_S.COPY, _E.SPLIT_FORCED): _S.PSUS,
    (_S.COPY, _E.FAIL): _S.PSUE,
    (_S.COPY, _E.RESYNC): _S.COPY,
    (_S.COPY, _E.DELETE): _S.SMPL,
    (_S.PAIR, _E.SPLIT): _S.PSUS,
    (_S.PAIR, _E.SPLIT_FORCED): _S.PSUS,
    (_S.PAIR, _E.FAIL): _S.PSUE,
    (_S.PAIR, _E.RESYNC): _S.PAIR,
    (_S.PAIR, _E.TAKEOVER): _S.SSWS,
    (_S.PAIR, _E.DELETE): _S.SMPL,
    (_S.PSUS, _E.SPLIT): _S.PSUS,
    (_S.PSUS, _E.SPLIT_FORCED): _S.PSUS,
    (_S.PSUS, _E.FAIL): _S.PSUS,
    (_S.PSUS, _E.RESYNC): _S.COPY,
    (_S.PSUS, _E.TAKEOVER): _S.SSWS,
    (_S.PSUS, _E.DELETE): _S.SMPL,
    (_S.PSUE, _E.SPLIT): _S.PSUE,
    (_S.PSUE, _E.SPLIT_FORCED): _S.PSUE,
    (_S.PSUE, _E.FAIL): _S.PSUE,
    (_S.PSUE, _E.RESYNC): _S.COPY,
    (_S.PSUE, _E.TAKEOVER): _S.SSWS,
    (_S.PSUE, _E.DELETE): _S.SMPL,
    (_S.SSWS, _E.FAIL): _S.SSWS,
    (_S.SSWS, _E.TAKEOVER): _S.SSWS,
    (_S.SSWS, _E.DELETE): _S.SMPL,
}
"""Every transition there is; a pair of state and event that is not here is refused."""


def allowed_events(state: PairState) -> tuple[PairEvent, ...]:
    """Return the events that ``state`` accepts, in the order of the table."""
    return tuple(event for known, event in TRANSITIONS if known is state)


def next_state(state: PairState, event: PairEvent) -> PairState:
    """Return the state after ``event``.

    Raises:
        BadOrder: not possible in ``state``; facts ``state``, ``event`` and ``allowed`` say what is.
    """
    following = TRANSITIONS.get((state, event))
    if following is None:
        allowed = allowed_events(state)
        raise BadOrder(
            f"{event} is not possible in state {state}; possible: {', '.join(allowed)}",
            state=state,
            event=event,
            allowed=allowed,
        )
    return following
