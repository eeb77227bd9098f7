"""Contact: what a secondary knows of its primary's present, and since when it knows nothing.

Owns: the newest heartbeat, the lag made of heartbeats, the write time up to which the
image may be claimed, and the part of it that is kept over a restart.
Never: talks to anybody, or reads a clock but those it is given.

What a reader would get wrong: only a heartbeat counts. A refusal also comes from the
primary, but says that it may have gone on alone since its last heartbeat (I14). The *last
word* that goes before it says what is missing, and not that the primary is heard.

A primary that is a synchronous secondary itself (cascade) says in its heartbeats how long
ago it heard its own primary. While it does not, it gives itself ticks, whose times are
later than anything it knows of: `limit_time` is where what is known ends. It is kept before
the first such tick is taken in: after a crash its time would be claimed.

Source: spec §4.3-4.4, §5.5, §7.6; invariant I14.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from controllerd.model.lag import LagClock
from controllerd.replication.kept import Clocks, Keepable, KeptFigures, RunBlocking
from controllerd.replication.messages import Heartbeat
from controllerd.replication.ports import Report
from controllerd.replication.tally import Tally
from controllerd.storage.catalogue import Catalogue

FACT: Final = "replication-contacts"
_NS: Final = 1_000_000_000


class Contact:
    """Contact with the primary of one pair; the pair was ``created`` (wall ns) with equal volumes.

    ``clock`` gives wall ns, ``now_s`` monotonic seconds; ``fresh_s`` as in `LagClock`.
    """

    def __init__(self, created: int, clock: Callable[[], int], now_s: Callable[[], float], fresh_s: float) -> None:
        self.lag = LagClock(fresh_s)
        self.beat: Heartbeat | None = None
        """Newest heartbeat of the primary, of this session or an earlier one."""
        self._last_word: Heartbeat | None = None
        """Where the primary was when it said that the pair is suspended."""
        self._last_word_s = -math.inf
        self._base: tuple[int, int, int] | None = None
        """Run of the primary, and by how much its writes and bytes are more than what is counted here."""
        self._arrived: tuple[int, Tally] | None = None
        """The primary's run, and by its counts what had arrived when it was last looked at."""
        self.on_limit: Callable[[], None] | None = None
        """Called when a heartbeat has named a limit; what it raises the heartbeat raises."""
        self._created = created
        self._clock = clock
        self._now_s = now_s
        self._known_s = -math.inf
        """Up to when it is known what the hosts wrote, by the local monotonic clock; minus infinity: not known."""
        self._known_before_s = -math.inf
        """The same, as it was when the present run of the primary began."""
        self._limit_time = 0
        self._limit_through: int | None = None
        """Number that has to be applied before the limit falls; None: it stands."""

    def heartbeat(self, beat: Heartbeat, heard_s: float) -> None:
        """A heartbeat came in at ``heard_s``.

        Raises:
            DiskFailed: it names a limit, which cannot be kept: nothing that follows it may be taken in.
        """
        self._hear(beat, heard_s)
        self._last_word = None
        if beat.limit_time:
            self._limit_time, self._limit_through = beat.limit_time, None
            if self.on_limit is not None:
                self.on_limit()
        elif self._limit_time and self._limit_through is None:
            self._limit_through = beat.last_seq

    def _hear(self, beat: Heartbeat, heard_s: float) -> None:
        if self.beat is None or beat.last_seq < self.beat.last_seq:
            self._known_before_s = -math.inf
        elif beat.run != self.beat.run:
            # A primary that restarted may know less of its own primary than it had told: what was known stays known.
            self._known_before_s = self._known_s
        self.beat = beat
        self._known_s = max(heard_s - beat.behind_ns / _NS, self._known_before_s)
        self.lag.heartbeat(beat.last_seq, beat.wall_ns, heard_s, behind_s=heard_s - self._known_s)

    def last_word(self, beat: Heartbeat) -> None:
        """The primary suspends or has suspended the pair, and was there when it said so."""
        self._last_word, self._last_word_s = beat, self._now_s()
        self.lag.read_clock(beat.wall_ns, self._last_word_s)

    def counted(self, run: int, at: Tally, here: Tally) -> None:
        """In ``run`` of the primary ``at`` is its count of what is here, and ``here`` this side's."""
        self._base = run, at.writes - here.writes, at.bytes - here.bytes
        self.arrived(here)

    def uncounted(self) -> None:
        """A session begins; the primary's counts may have another base."""
        self._base = None

    def arrived(self, here: Tally) -> None:
        """What has arrived, as counted here; kept with the heartbeat."""
        if self._base is not None:
            run, writes, size = self._base
            self._arrived = run, Tally(here.seq, here.writes + writes, here.bytes + size)

    def applied(self, sequence: int) -> None:
        """Everything up to the primary's record ``sequence`` is visible."""
        self.lag.applied(sequence)
        if self._limit_through is not None and sequence >= self._limit_through:
            self._limit_time, self._limit_through = 0, None

    # ---- what is asked for -----------------------------------------------------------

    @property
    def newest(self) -> Heartbeat | None:
        """The newest the primary told of where it is; None: nothing yet."""
        return self._last_word or self.beat

    def missing_records(self, arrived_seq: int) -> int:
        """Records, ticks too, behind ``arrived_seq`` that the primary told of."""
        return 0 if self.newest is None else max(0, self.newest.last_seq - arrived_seq)

    def missing(self, here: Tally) -> tuple[int | None, int | None]:
        """(writes, bytes) that the primary told of, beyond what is ``here`` by this side's count; None: not known."""
        newest = self.newest
        if newest is None:
            return None, None
        records = self.missing_records(here.seq)
        if not records:
            return 0, 0
        self.arrived(here)
        if self._arrived is None or self._arrived[0] != newest.run or self._arrived[1].seq > here.seq:
            return None, None
        # After a restart more is here than was kept as arrived: too many are named rather than too few.
        at = self._arrived[1]
        behind = max(0, newest.writes - at.writes)
        writes = min(records, behind)
        return writes, round(max(0, newest.size - at.bytes) * writes / max(1, behind))

    @property
    def limit_time(self) -> int:
        """Write time up to which the primary knew everything; 0: its times say it themselves."""
        return self._limit_time

    @property
    def limit(self) -> tuple[int, int | None]:
        """`limit_time`, and the number that has to be applied before it falls; None: it stands."""
        return self._limit_time, self._limit_through

    @property
    def heard_mark(self) -> tuple[float, float]:
        """See Keepable."""
        return self.lag.heard_s, self._last_word_s

    @property
    def heard_age_s(self) -> float:
        """Seconds since the last heartbeat, or since the pair was created."""
        if math.isinf(self.lag.heard_s):
            return max(0.0, (self._clock() - self._created) / _NS)
        return max(0.0, self._now_s() - self.lag.heard_s)

    @property
    def unknown_s(self) -> float:
        """Seconds for which nothing is known of what the hosts wrote."""
        return self.heard_age_s if math.isinf(self._known_s) else max(0.0, self._now_s() - self._known_s)

    @property
    def told_age_s(self) -> float | None:
        """Seconds since the primary told of `newest`; None: it never did."""
        if self._last_word is not None:
            return max(0.0, self._now_s() - self._last_word_s)
        return None if self.beat is None else self.heard_age_s

    @property
    def told_s(self) -> float:
        """Seconds at the primary between what is shown for sure and `newest`; infinite: not known."""
        shown_ns = self.lag.consistent_wall_ns
        if self._last_word is None or shown_ns is None:
            return self.lag.told_s
        # After a restart the lag does not know what the last word said of the clock.
        return max((self._last_word.wall_ns - shown_ns) / _NS, self.lag.age_seconds(self._last_word_s))

    @property
    def heard_at(self) -> int:
        """Wall ns of the last heartbeat."""
        return self._clock() - round(self.heard_age_s * _NS)

    @property
    def unknown_since(self) -> int:
        """Wall ns since when nothing is known."""
        return self._clock() - round(self.unknown_s * _NS)

    # ---- over restarts -----------------------------------------------------------------

    def document(self) -> dict[str, Any] | None:
        """What is kept, as JSON values; None: nothing was heard yet."""
        if self.beat is None:
            return None
        return {
            "created": self._created, "heard_at": self.heard_at,
            "known_at": None if math.isinf(self._known_s) else self.unknown_since,
            "beat": asdict(self.beat), "image": self.lag.image, "dated": self.lag.dated,
            "limit_time": self._limit_time, "limit_through": self._limit_through,
            "last_word": None if self._last_word is None else asdict(self._last_word),
            "last_word_at": self._clock() - round((self.told_age_s or 0.0) * _NS),
            "arrived": None if self._arrived is None else [self._arrived[0], *self._arrived[1]],
        }  # fmt: skip

    def restore(self, document: dict[str, Any], set_ns: int | None) -> None:
        """See Keepable. What another pair of the same name kept is nothing to this one."""
        if document["created"] != self._created:
            return
        clock, now_s = self._clock() - (set_ns or 0), self._now_s()
        age_s = max(0.0, (clock - document["heard_at"]) / _NS)
        beat = Heartbeat(**document["beat"])
        if document["known_at"] is not None:
            self._known_before_s = now_s - max(age_s, (clock - document["known_at"]) / _NS)
        if document["image"] is not None:
            self.lag.restore(document["image"], beat.wall_ns, now_s - age_s)
        self.beat = beat
        self._hear(beat, now_s - age_s)
        self.lag.cut()
        if set_ns is None or not document.get("dated", True):
            self._undate()
        self._limit_time, self._limit_through = document["limit_time"], document["limit_through"]
        if document["last_word"] is not None:
            self._last_word = Heartbeat(**document["last_word"])
            self._last_word_s = now_s - max(0.0, (clock - document["last_word_at"]) / _NS)
        if document["arrived"] is not None:
            run, *counts = document["arrived"]
            self._arrived = run, Tally(*counts)

    def proved(self, sequence: int, time: int, *, timed: bool) -> None:
        """The journal ends with the primary's record ``sequence`` of write time ``time``, made after what was kept.

        ``timed``: write times are of the primary's clock. A record is then as good as a heartbeat that came when it
        was written; a copy's records tell nothing of when it heard what it copies.
        """
        beat = self.beat
        if beat is None or sequence <= beat.last_seq:
            return
        later_ns = time - max(beat.wall_ns, beat.last_time)
        heard_s, wall_ns = self.lag.heard_s, beat.wall_ns
        original = not (beat.behind_ns or self._limit_time)
        # Longer than the time that has passed: a clock was set, and nothing follows from it.
        if timed and original and 0 < later_ns <= (self._now_s() - heard_s) * _NS:
            heard_s, wall_ns = heard_s + later_ns / _NS, time
        newest = replace(beat, last_seq=sequence, last_time=max(time, beat.last_time), wall_ns=wall_ns)
        dated = self.lag.dated
        self._hear(newest, heard_s)
        self.lag.cut()
        if not dated:
            self._undate()

    def _undate(self) -> None:
        """Nobody knows how long ago the primary was heard: nothing is known up to any time."""
        self.lag.undate()
        self._known_s = self._known_before_s = -math.inf


class KeptContacts(KeptFigures):
    """The contacts of all pairs whose secondaries are here. A limit is kept at once, before anything goes on."""

    def __init__(self, catalogue: Catalogue, run_blocking: RunBlocking, report: Report, clocks: Clocks) -> None:
        super().__init__(catalogue, FACT, run_blocking, report, clocks)
        self._limits: dict[str, tuple[int, int | None]] | None = {}
        """Those that are kept; None: others may be kept by now."""

    def begin(self, items: Mapping[str, Keepable]) -> None:
        self._limits = None
        super().begin(items)

    def keep_now(self, items: Mapping[str, Keepable], now_s: float) -> None:
        self._limits = None
        super().keep_now(items, now_s)

    def keep_limits(self, contacts: Mapping[str, Contact], now_s: float) -> None:
        """Keep them if a limit is not the kept one; durable on return.

        Raises:
            DiskFailed: not kept; it is tried again when asked again.
        """
        limits = {name: contact.limit for name, contact in contacts.items()}
        if limits != self._limits:
            self.keep_now(contacts, now_s)
            self._limits = limits
