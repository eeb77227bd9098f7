"""Tally: how many writes, and bytes of data, a primary has journaled up to a record.

Owns: comparing such counts, and remembering those of earlier moments.
Never: counts itself; the group does.

Time ticks are records and no writes: they are in the numbers, and in neither count. Counts
begin anywhere and mean something only next to others of the same run of the primary.

What a reader would get wrong: between two remembered moments a count is in proportion, so
that writes and bytes always fit each other; before the first one nothing is known.

Source: spec §5.5, §7.6; invariants I13, I14.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

SAMPLES: Final = 256


class Tally(NamedTuple):
    """``writes`` writes with ``bytes`` bytes of data were journaled up to record ``seq``."""

    seq: int
    writes: int
    bytes: int


class Tallies:
    """What was counted at earlier moments, with the write time of the last record then."""

    def __init__(self) -> None:
        self._samples: deque[tuple[Tally, int]] = deque()

    @property
    def first(self) -> Tally | None:
        """The oldest that is remembered."""
        return self._samples[0][0] if self._samples else None

    def note(self, tally: Tally, time: int, needed_from: int) -> None:
        """Remember ``tally``; what is behind the last one up to record ``needed_from`` is not asked for any more."""
        samples = self._samples
        if samples and tally.seq < samples[-1][0].seq:
            samples.clear()  # the group began a new journal
        if samples and tally.seq == samples[-1][0].seq:
            return
        samples.append((tally, time))
        while len(samples) > 1 and samples[1][0].seq <= needed_from:
            samples.popleft()
        if len(samples) > SAMPLES:
            # However long it takes, the first one is kept: it is what the secondary has.
            kept = list(samples)
            self._samples = deque([kept[0], *kept[1:-1:2], kept[-1]])

    def at(self, seq: int, now: Tally) -> Tally | None:
        """The tally just behind record ``seq``, ``now`` being that of the last one; None: from before what is known."""
        if seq >= now.seq:
            return now
        low = None
        for sample, _ in self._samples:
            if sample.seq > seq:
                return None if low is None else between(low, sample, seq)
            low = sample
        return None if low is None else between(low, now, seq)

    def time_at(self, seq: int) -> int | None:
        """A write time that record ``seq`` is not older than; None: not known."""
        known = [time for sample, time in self._samples if sample.seq <= seq]
        return known[-1] if known else None


def between(low: Tally, high: Tally, seq: int) -> Tally:
    """The tally at ``seq``, in proportion; the bytes are those of as many writes of the average size."""
    writes, size = high.writes - low.writes, high.bytes - low.bytes
    part = round(writes * (seq - low.seq) / max(1, high.seq - low.seq))
    return Tally(seq, low.writes + part, low.bytes + round(size * part / max(1, writes)))
