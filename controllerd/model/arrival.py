"""Arrival of frames that come over several connections: what is there without gaps.

Owns: the next sequence number a group needs, and the frames that arrived ahead of it.
Never: looks into a frame, asks for one again, or waits; the caller does.

A frame is a run of records, ``first`` to ``last`` by sequence number, and is taken or thrown
away whole. Frames are cut anew when they are sent again, so they need not match the ones
before: one that begins with numbers that are here already and goes on with new ones is thrown
away, and ``ask_again`` then says that the numbers from ``next_sequence`` have to be asked for.

Source: RC ¶37 (the arrived time counts up to the first gap), ¶38 (parallel transfer); spec §4.1-4.2.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

from controllerd.model.errors import Corrupt, Overflow

Payload = TypeVar("Payload")


class Arrival(Generic[Payload]):
    """Puts the frames of one group in order. Payloads are opaque."""

    __slots__ = (
        "_firsts", "_held", "ask_again", "duplicates", "held_bytes", "limit_bytes", "next_sequence", "overlaps",
    )  # fmt: skip

    def __init__(self, next_sequence: int, limit_bytes: int) -> None:
        self.next_sequence = next_sequence
        """First number that is not here yet."""
        self.limit_bytes = limit_bytes
        """Most bytes held ahead of a gap."""
        self.held_bytes = 0
        self.duplicates = 0
        """Frames dropped because everything in them was here already."""
        self.overlaps = 0
        """Frames dropped because a part of them was here already."""
        self.ask_again = False
        """Set when an overlap was dropped. The caller asks from ``next_sequence`` and clears it."""
        self._held: dict[int, tuple[int, int, Payload]] = {}  # first -> (last, size, payload)
        self._firsts: list[int] = []  # heap of the keys of _held

    @property
    def held_frames(self) -> int:
        """Frames waiting behind a gap."""
        return len(self._held)

    def offer(self, first: int, last: int, size: int, payload: Payload) -> list[Payload]:
        """Take a frame of ``size`` bytes; return what now continues the gap-free run, in order.

        The list is empty if the frame is a duplicate, an overlap (see ``ask_again``) or ahead of a gap.

        Raises:
            Corrupt: ``first`` is above ``last`` or ``size`` is not positive. Nothing was changed.
            Overflow: more than ``limit_bytes`` would be held. Nothing was changed; drop the
                frame and ask for it again once the gap is closed, or close the connection.
        """
        if first > last or size <= 0:
            raise Corrupt(f"frame {first}..{last} of {size} bytes is not a run of records", first=first, last=last)
        following = self.next_sequence
        if first > following:
            self._hold(first, last, size, payload)
            return []
        if last < following:
            self.duplicates += 1
            return []
        if first < following:
            self._drop_overlap()
            return []
        self.next_sequence = last + 1
        ready = [payload]
        if self._firsts:
            self._release_into(ready)
        return ready

    def gap(self) -> tuple[int, int] | None:
        """Return the first and last number missing before the first frame held, or None if none is held."""
        if not self._firsts:
            return None
        return self.next_sequence, self._firsts[0] - 1

    def _hold(self, first: int, last: int, size: int, payload: Payload) -> None:
        known = self._held.get(first)
        if known is not None and last <= known[0]:
            self.duplicates += 1
            return
        held_bytes = self.held_bytes + size - (known[1] if known is not None else 0)
        if held_bytes > self.limit_bytes:
            raise Overflow(
                f"frames ahead of missing number {self.next_sequence} exceed {self.limit_bytes} bytes",
                limit_bytes=self.limit_bytes,
                next_sequence=self.next_sequence,
            )
        self.held_bytes = held_bytes
        self._held[first] = (last, size, payload)
        if known is None:
            heapq.heappush(self._firsts, first)
        else:
            self.duplicates += 1  # the longer frame takes the place of the shorter one

    def _release_into(self, ready: list[Payload]) -> None:
        firsts = self._firsts
        while firsts and firsts[0] <= self.next_sequence:
            first = heapq.heappop(firsts)
            last, size, payload = self._held.pop(first)
            self.held_bytes -= size
            if last < self.next_sequence:
                self.duplicates += 1
            elif first < self.next_sequence:
                self._drop_overlap()
            else:
                self.next_sequence = last + 1
                ready.append(payload)

    def _drop_overlap(self) -> None:
        self.overlaps += 1
        self.ask_again = True
