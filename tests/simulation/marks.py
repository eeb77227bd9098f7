"""Reached-marks: what a long run has to come by, so that a swarm that stopped going somewhere is noticed.

Owns: the list of marks that must not be missing.
Never: counts; the world does.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from tests.simulation.faults import FAULTS

_CHANGES: Final = (
    "primary PAIR->PSUE", "primary PAIR->PSUS", "primary PAIR->SSWS", "primary PSUE->SSWS",
    "secondary PAIR->PSUE", "secondary PAIR->PSUS", "secondary PAIR->SSWS", "secondary PSUE->SSWS",
    "primary PSUS->SSWS", "secondary PSUS->SSWS",
)  # fmt: skip
_FAULTS: Final = tuple(fault.name for fault in FAULTS)
_DURING: Final = tuple(
    f"{change} during {fault}"
    for change in ("primary PAIR->PSUE", "primary PAIR->SSWS", "secondary PAIR->PSUE", "secondary PAIR->SSWS")
    for fault in _FAULTS
)
_EVENTS: Final = (
    "apply-stopped", "a bit turned on the way", "a connection was held", "a damaged catalogue was refused",
    "a journal was damaged at rest", "a journal was read back wrong", "a write to a secondary was refused",
    "an unheard mirror lost its power", "compared equal copies", "crash during takeover",
    "damage at rest was reported", "F13 EIO on fsync of a journal hit", "hosts wait for the group to accept",
    "pair-adopted", "pair-connected", "pair-disconnected", "pair-stalled", "primary-fenced",
    "restart after a failed disk", "split brain", "sync-lost",
    "takeover", "takeover in doubt", "takeover-decided", "takeover-done",
)  # fmt: skip
REQUIRED: Final = (*_CHANGES, *_FAULTS, *_DURING, *_EVENTS)


def missing_marks(reached: Counter[str]) -> list[str]:
    """Return the marks that were not reached."""
    return [mark for mark in REQUIRED if not reached[mark]]
