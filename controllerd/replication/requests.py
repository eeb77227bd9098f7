"""Requests: what an authenticated connection asks for first, and which pair answers.

Owns: reading the first frame, and what is said when there is no such pair.
Never: answers for a pair (primary.py does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from controllerd.replication.frames import Frame, FrameError, FrameType
from controllerd.replication.links import Link
from controllerd.replication.messages import Farewell, Fence, Pull, Refuse, RefuseCode
from controllerd.replication.ports import Report
from controllerd.replication.register import PairRegister

_REQUESTS: Final[dict[int, Callable[[memoryview], Pull | Fence | Farewell]]] = {
    FrameType.PULL: Pull.decode_untrusted,
    FrameType.FENCE: Fence.decode_untrusted,
    FrameType.FAREWELL: Farewell.decode_untrusted,
}
"""What a connection may ask for first, and how it is read."""


class Requests:
    """Hands connections to ``pairs``."""

    def __init__(self, pairs: PairRegister, report: Report) -> None:
        self._pairs = pairs
        self._report = report

    def request(self, link: Link, frame: Frame) -> None:
        """First frame of an authenticated connection."""
        decode = _REQUESTS.get(frame.type)
        if decode is None:
            raise FrameError(f"frame type {frame.type} where PULL, FENCE or FAREWELL has to come")
        request = decode(frame.payload)
        pair = self._pairs.primaries.get(request.pair)
        if pair is None:
            link.send(Refuse(RefuseCode.UNKNOWN_PAIR, f"no pair {request.pair} here", "", 0).encode())
            link.close("unknown pair")
        elif isinstance(request, Pull):
            pair.pull(link, request)
        elif isinstance(request, Fence):
            pair.fence(link, request)
        else:
            pair.farewell(link, request)

    def unproved(self, address: str, claimed: str, reason: str) -> None:
        """Somebody who says it is controller ``claimed`` did not prove it."""
        self._report("peer-refused", {"address": address, "claims": claimed, "reason": reason})
        for pair in self._pairs.primaries.values():
            if pair.record.peer == claimed and not pair.sender.connected:
                pair.sender.reason = f"refused at {address}: {reason}"
