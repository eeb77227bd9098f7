"""What the transmission machine tells its adapter.

Owns: the reasons for which parsing stops, and requests that leave the pass.
Never: acts on any of them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from controllerd.targets.nbd.contexts import Context


class Stop(enum.Enum):
    """Why `Transmission.advance` returned, and when to call it again."""

    INPUT = "input"
    """Nothing complete is left: call again after more was received."""
    OUTPUT = "output"
    """Many replies are gathered: call again in a turn in which ``out`` was sent and the client takes more."""
    GROUP = "group"
    """The group takes no writes now: call again from its `when_accepting`. Receive nothing until then."""
    TURN = "turn"
    """Others have waited long enough: call again in the loop's next turn. Receive nothing until then."""
    PENDING = "pending"
    """Many requests wait: call again when `wake` was called. Receive nothing until then."""
    END = "end"
    """No more requests: close when ``in_flight`` is 0 and ``out`` was sent, or at once if ``fault`` says what the
    client did wrong."""


INPUT: Final = Stop.INPUT
OUTPUT: Final = Stop.OUTPUT
GROUP: Final = Stop.GROUP
TURN: Final = Stop.TURN
PENDING: Final = Stop.PENDING
END: Final = Stop.END
"""For hot loops: to look a member up in its class takes Python 3.11 longer (0.1 us) than to call a function."""


@dataclass(slots=True)
class SlowRead:
    """A read that leaves the pass. ``cookie`` is a token (framing.py).

    ``whole``: its reply must not be split. ``memory``: bytes it takes while served.
    """

    cookie: bytes
    offset: int
    length: int
    whole: bool
    memory: int


@dataclass(frozen=True, slots=True)
class SlowStatus:
    """A BLOCK_STATUS that may have to wait until differences are known. ``one``: one extent for each context."""

    cookie: bytes
    offset: int
    length: int
    contexts: Sequence[Context]
    one: bool
