"""Write times: the number that orders writes across the groups of one controller.

Owns: the *write time information* (RC ¶29) of a controller, and how the next write gets its time.
Never: reads a clock; ``now`` comes in with every call, in ns since the epoch.

Three sources, one small class each (spec §3.3):

- ``host``      the hosts carry the time; a write without one gets the remembered one (RC ¶26-30)
- ``clock``     the controller's clock, strictly increasing (RC ¶50-51)
- ``sequence``  a controller-wide counter (RC ¶52-53)

What a reader would get wrong: a secondary applies *strictly before* the oldest arrived time,
because more writes with an equal time may still be on their way. So times may repeat, and a
time that was given to a write becomes visible only after something later has arrived in every
group. ``tick`` makes that something. In host mode little else moves the time while no host
carries one, so there ticks are needed on busy groups too, not only on idle ones.
"""

from __future__ import annotations

from typing import Final, Literal, Protocol, assert_never

from controllerd.model.errors import BadOrder

Source = Literal["host", "clock", "sequence"]

MAX_CARRIED: Final = (1 << 63) - 1
"""Latest time that a peer may carry, in ns (year 2262). A later one would leave no room for the times after it."""

MAX_HEARD: Final = 1 << 62
"""Latest time of a peer that moves this controller's own ones, in ns (year 2116); a later one counts as this.

Else one peer with a wrong clock could use up the times that the writes of all other groups need.
"""

LOST_STEP: Final = 1 << 40
"""Step over the numbers that a power loss may have taken: more than journals can hold that are not durable yet."""

SHARED_MAX: Final = 1 << 20
"""Bytes of records that may share a time: far less than the smallest journal holds.

A secondary must keep all of them until something later has arrived. If they filled its journal, nothing ever would.
"""

HOST_AHEAD_NS: Final = 3_600_000_000_000
"""How far ahead of the controller's clock a host's time may be, if nothing else is said."""


class WriteTime(Protocol):
    """What the three sources have in common. Times are u64: ns since the epoch, or a count."""

    @property
    def source(self) -> str:
        """Name of the source as configured."""
        ...

    @property
    def last(self) -> int:
        """Latest time handed out or observed (RC: write time information)."""
        ...

    @property
    def clamped(self) -> int:
        """How many carried times became ``last``: those older than it, and those too far ahead to be believed."""
        ...

    def stamp(self, now: int, carried: int | None, size: int) -> int:
        """Return the time of the next host write, whose record has ``size`` bytes.

        ``carried`` is the time it brought, or None; ``now`` in ns.
        """
        ...

    def pass_on(self, carried: int, now: int, size: int) -> int:
        """Return the time of a write that an upstream controller has already given ``carried`` (RC ¶58-59).

        ``size``: bytes of its record.

        Raises:
            BadOrder: ``carried`` is above MAX_CARRIED; refuse the record.
        """
        ...

    def pass_on_tick(self, carried: int, now: int) -> int:
        """Return the time of a tick that an upstream controller gave ``carried``; moves the time if a write has it.

        A write that was clamped to ``last`` is shown only after something later has arrived, and the
        upstream controller, whose own time is behind, would not send anything later by itself.

        Raises:
            BadOrder: as `pass_on`.
        """
        ...

    def tick(self, now: int) -> int:
        """Return a time t > every time given to a write so far; no write of this controller gets one below t."""
        ...

    def observe(self, time: int) -> None:
        """Recovery: ``time`` was given to a write. Nothing older is handed out from now on."""
        ...

    def pass_lost(self) -> None:
        """Recovery: later times than those observed may have been given to writes that are lost.

        A secondary may have such a write. Keep `last` durably before anything more is handed out.
        """
        ...


def _heard(carried: int) -> int:
    if carried > MAX_CARRIED:
        raise BadOrder(f"write time {carried} ns is above the largest allowed, {MAX_CARRIED}", carried=carried)
    return min(carried, MAX_HEARD)


class HostTime:
    """Times that the hosts carry (RC ¶26-30). Never goes backwards: an older carried time is clamped and counted.

    A time more than ``ahead_ns`` ahead of this controller's clock is not believed, or one host
    with a wrong clock would give its time to the writes of all hosts from then on: such a
    write counts as one without a time.

    While hosts carry no times every write gets the same one, and a secondary must wait for a
    later one before it may apply any of them. So ``tick`` moves the remembered time by 1 ns, but
    only if a write got it since the last move: an idle controller comes to rest, and the
    remembered time stays as close to the hosts' clock as it can. A host whose clock is so
    coarse that its next write carries the time from before the move is clamped by that 1 ns.

    Ticks may be far apart: none are given while a peer is not connected. So the time also moves
    by 1 ns when more than SHARED_MAX bytes would have it.
    """

    __slots__ = ("_ahead_ns", "_shared", "_used", "clamped", "last")
    source: Final = "host"

    def __init__(self, last: int = 0, ahead_ns: int = HOST_AHEAD_NS) -> None:
        self.last = last
        self._ahead_ns = ahead_ns
        self.clamped = 0
        # A restored ``last`` was given to some write of the run before.
        self._used = last > 0
        self._shared = 0
        """Bytes of records that got ``last``."""

    def stamp(self, now: int, carried: int | None, size: int) -> int:
        """See WriteTime."""
        if carried is None:
            return self._use(size)
        if carried > now + self._ahead_ns:
            self.clamped += 1
            return self._use(size)
        return self.pass_on(carried, now, size)

    def pass_on(self, carried: int, now: int, size: int) -> int:
        """See WriteTime; the upstream controller has judged it by its clock (RC ¶58)."""
        carried = _heard(carried)
        if carried > self.last:
            self._move(carried)
        elif carried < self.last:
            self.clamped += 1
        return self._use(size)

    def _use(self, size: int) -> int:
        """A record of ``size`` bytes gets the remembered time, or the next one if that has been given to enough."""
        if self._used and self._shared + size > SHARED_MAX:
            self._move(self.last + 1)
        self._used = True
        self._shared += size
        return self.last

    def _move(self, time: int) -> None:
        self.last = time
        self._used = False
        self._shared = 0

    def pass_on_tick(self, carried: int, now: int) -> int:
        """See WriteTime."""
        carried = _heard(carried)
        if carried > self.last:
            self._move(carried)
            return carried
        return self.tick(now)

    def tick(self, now: int) -> int:
        """See WriteTime and the class. ``now`` is not used."""
        if self._used:
            self._move(self.last + 1)
        return self.last

    def observe(self, time: int) -> None:
        """See WriteTime."""
        if time >= self.last:
            self.last = time
            self._used = True

    def pass_lost(self) -> None:
        """See WriteTime: what a secondary shows is bounded by each group's own times, which it has or refuses."""


class ClockTime:
    """The controller's clock, strictly increasing whatever the clock does (RC ¶50-51).

    If the clock steps back, times go on in steps of 1 ns until the clock has caught up.
    """

    __slots__ = ("clamped", "last")
    source: Final = "clock"

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.clamped = 0

    def stamp(self, now: int, carried: int | None, size: int) -> int:
        """See WriteTime. What a host carried is ignored: this controller's clock decides."""
        last = self.last + 1
        if now > last:
            last = now
        self.last = last
        return last

    def pass_on(self, carried: int, now: int, size: int) -> int:
        """See WriteTime: the upstream clock decides (spec §4.4), as long as it is ahead of what was handed out.

        Clamped times go on by 1 ns: were they equal, the writes of a busy controller whose clock is behind
        that of another, idle one would all be kept back, and in the end fill the journal.
        """
        carried = _heard(carried)
        if carried <= self.last:
            self.clamped += 1
        self.last = max(carried, self.last + 1)
        return self.last

    def pass_on_tick(self, carried: int, now: int) -> int:
        """See WriteTime: not this controller's clock, or later writes would lose the upstream one's times."""
        self.last = max(_heard(carried), self.last + 1)
        return self.last

    def tick(self, now: int) -> int:
        """See WriteTime."""
        return self.stamp(now, None, 0)

    def observe(self, time: int) -> None:
        """See WriteTime."""
        if time > self.last:
            self.last = time

    def pass_lost(self) -> None:
        """See WriteTime: as with `HostTime`, nothing needs to be passed."""


class SequenceTime:
    """A controller-wide counter (RC ¶52-53): the first number is 1 and none is left out, but after a power loss.

    A tick takes a number too, so its record must be sent like a write's: the secondary passes a
    number only when every group has brought a later one.
    """

    __slots__ = ("clamped", "last")
    source: Final = "sequence"

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.clamped = 0

    def stamp(self, now: int, carried: int | None, size: int) -> int:
        """See WriteTime. ``now`` and ``carried`` are not used."""
        self.last += 1
        return self.last

    def pass_on(self, carried: int, now: int, size: int) -> int:
        """See WriteTime: the upstream number means nothing here, the write gets an own one (RC ¶59)."""
        self.last += 1
        return self.last

    def pass_on_tick(self, carried: int, now: int) -> int:
        """See WriteTime."""
        self.last += 1
        return self.last

    def tick(self, now: int) -> int:
        """See WriteTime."""
        self.last += 1
        return self.last

    def observe(self, time: int) -> None:
        """See WriteTime."""
        if time > self.last:
            self.last = time

    def pass_lost(self) -> None:
        """See WriteTime: a number of one group decides what is shown of the others, so none may come twice."""
        self.last = (self.last // LOST_STEP + 1) * LOST_STEP


def make_write_time(source: Source, last: int = 0, ahead_ns: int = HOST_AHEAD_NS) -> WriteTime:
    """Return the time source named in the configuration, which hands out nothing older than ``last``.

    ``ahead_ns``: see `HostTime`.
    """
    match source:
        case "host":
            return HostTime(last, ahead_ns)
        case "clock":
            return ClockTime(last)
        case "sequence":
            return SequenceTime(last)
        case _:
            assert_never(source)
