"""Lag of a secondary: how far, in seconds, its image is behind the primary now.

Owns: samples of the peer's last sequence number over time, and the figure made of them.
Never: reads a clock; local monotonic seconds and the peer's wall ns come in with each call.

A heartbeat says: at my wall time w my last number was s. Once s is applied, the image is at
least as new as w. The peer's present wall time is the wall time of a heartbeat plus what has
passed here since. So a cut link shows a growing lag, whatever is or is not written meanwhile.

A peer that is itself a copy says how far it is ``behind`` what it copies: the image is then only
as new as that, however new the peer's heartbeat is.

What a reader would get wrong: the figure may be too high, never too low (I14). A heartbeat that
was under way for a while puts the peer's present too early; of the heartbeats since the sample
in use the one that was under way least counts, and ``under_way_s`` takes off the rest. This
also bounds what a step of the peer's clock can do: the figure is never below the time that has
passed here since the sample in use came in.

Source: spec §5.5, §7.6; invariant I14.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, NamedTuple

_NS = 1_000_000_000
LEAST_S: Final = 0.001
"""The figure is at least this when something is missing: it is what people are shown first that is not 0."""


class _Sample(NamedTuple):
    seq: int
    wall_ns: int
    ahead_ns: int
    """Peer wall minus local monotonic, by this heartbeat; a late heartbeat makes it smaller."""


class LagClock:
    """Lag of one group pair. ``fresh_s``: age in seconds up to which a heartbeat counts as the present."""

    def __init__(self, fresh_s: float = 1.0, samples_max: int = 256) -> None:
        self.fresh_s = fresh_s
        self.samples_max = max(4, samples_max)
        self._samples: deque[_Sample] = deque()
        self._applied = 0
        self._newest_mono_s = -math.inf
        self._newest_wall_ns = 0
        self._fresh_until_s = -math.inf
        self.dated = True
        """Whether it is known how long ago the samples came in."""

    @property
    def consistent_wall_ns(self) -> int | None:
        """The image holds everything the peer had at this peer wall time; None if not known yet."""
        if self._samples and self._samples[0].seq <= self._applied:
            return self._samples[0].wall_ns
        return None

    @property
    def image(self) -> tuple[int, int] | None:
        """(number, wall ns): with everything up to that number the image is as new as that; None: not known yet.

        By the peer's clock as the newest heartbeat showed it: the clock may have been set since the image was new.
        """
        age_ns = self._age_ns(self._newest_mono_s)
        return None if age_ns is None else (self._samples[0].seq, self._newest_wall_ns - age_ns)

    @property
    def heard_s(self) -> float:
        """When the newest heartbeat came in, by the local monotonic clock; minus infinity: none has yet."""
        return self._newest_mono_s

    def heartbeat(
        self,
        peer_last_seq: int,
        peer_wall_ns: int,
        local_mono_s: float,
        under_way_s: float = 0.0,
        behind_s: float = 0.0,
    ) -> None:
        """Take in a heartbeat that came in at ``local_mono_s``. Heartbeats come in the order they were made.

        ``under_way_s`` is the longest it can have been under way; if it answers a request, the time since that
        was sent. Without it the figure can be too low by what the fastest recent heartbeat took.
        ``behind_s``: the age of what the peer has, if it is a copy itself.
        """
        ahead_ns = peer_wall_ns - round((local_mono_s - under_way_s) * _NS)
        samples = self._samples
        if samples and samples[-1].seq == peer_last_seq > self._applied:
            # Nothing new was written: this sample says more than the one before, whose clock reading is kept.
            ahead_ns = max(ahead_ns, samples.pop().ahead_ns)
        samples.append(_Sample(peer_last_seq, peer_wall_ns - round(behind_s * _NS), ahead_ns))
        self.dated = True
        self._newest_mono_s = local_mono_s - under_way_s
        self._newest_wall_ns = peer_wall_ns
        self._fresh_until_s = self._newest_mono_s + self.fresh_s - behind_s
        self._forget_passed()
        if len(samples) > self.samples_max:
            self._drop_one()

    def restore(self, image: tuple[int, int], peer_wall_ns: int, local_mono_s: float) -> None:
        """Take in what an earlier run knew: its `image`, and a heartbeat's wall ns and when it came in."""
        seq, image_wall_ns = image
        self.heartbeat(seq, peer_wall_ns, local_mono_s, behind_s=(peer_wall_ns - image_wall_ns) / _NS)

    def applied(self, seq: int) -> None:
        """Everything up to ``seq`` is visible."""
        if seq > self._applied:
            self._applied = seq
            self._forget_passed()

    def read_clock(self, peer_wall_ns: int, local_mono_s: float) -> None:
        """The peer's wall clock was read, and said nothing of its last number."""
        if self._samples:
            newest = self._samples[-1]
            ahead_ns = max(newest.ahead_ns, peer_wall_ns - round(local_mono_s * _NS))
            self._samples[-1] = newest._replace(ahead_ns=ahead_ns)
            self.dated = True

    def undate(self) -> None:
        """The samples came in nobody knows when: the lag is not known until the peer's clock is read again."""
        self.dated = False

    def cut(self) -> None:
        """The link is known to be cut: the newest heartbeat is not the present any more."""
        self._fresh_until_s = -math.inf

    def lag_seconds(self, local_mono_s: float, *, missing: bool = False) -> float:
        """Return the lag in seconds; infinite as long as nothing is known.

        ``missing``: it is known otherwise that the image lacks something; then it is at least `LEAST_S`.

        Exactly 0.0 if what the newest heartbeat told of is younger than ``fresh_s`` and all of it is applied:
        within ``fresh_s`` a silent link and an idle primary look the same, unless the link is known to be `cut`.
        """
        age_ns = self._age_ns(local_mono_s)
        if age_ns is None or not self.dated:
            return math.inf
        if len(self._samples) == 1 and local_mono_s < self._fresh_until_s and not missing:
            return 0.0
        return max(LEAST_S if missing else 0.0, age_ns / _NS)

    def _age_ns(self, local_mono_s: float) -> int | None:
        """How old the image is then, by what every sample said of the peer's clock; None: not known."""
        consistent_ns = self.consistent_wall_ns
        if consistent_ns is None:
            return None
        return max(sample.ahead_ns for sample in self._samples) + round(local_mono_s * _NS) - consistent_ns

    def age_seconds(self, local_mono_s: float) -> float:
        """How old the image was then, by what every sample said of the peer's clock; infinite: not known."""
        age_ns = self._age_ns(local_mono_s)
        return math.inf if age_ns is None else max(0.0, age_ns / _NS)

    @property
    def told_s(self) -> float:
        """Seconds at the peer between what the image holds for sure and what the newest heartbeat told of.

        Infinite when it is not known what the image holds.
        """
        age_ns = self._age_ns(self._newest_mono_s)
        if age_ns is None:
            return math.inf
        behind_ns = self._newest_wall_ns - self._samples[-1].wall_ns
        return max(0.0, (age_ns - behind_ns) / _NS)

    def _forget_passed(self) -> None:
        """Keep one sample that is applied wholly, the newest, as the first."""
        samples = self._samples
        while len(samples) > 1 and samples[1].seq <= self._applied:
            samples.popleft()

    def _drop_one(self) -> None:
        """Drop the sample that is missed least, never an end: the figure can only rise by it.

        The one whose neighbours are nearest to each other, so that the samples stay evenly spread.
        """
        samples = self._samples
        walls = [sample.wall_ns for sample in samples]
        index = min(range(1, len(walls) - 1), key=lambda middle: walls[middle + 1] - walls[middle - 1])
        dropped, following = samples[index], samples[index + 1]
        samples[index + 1] = following._replace(ahead_ns=max(dropped.ahead_ns, following.ahead_ns))
        del samples[index]
