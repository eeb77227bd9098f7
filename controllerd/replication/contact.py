"""Contact: what a secondary knows of its primary's present, and since when it knows nothing.

Owns: the newest heartbeat, the lag made of heartbeats, the write time up to which the
image may be claimed, and the part of it that is kept over a restart.
Never: talks to anybody, or reads a clock but those it is given.

What a reader would get wrong: only a heartbeat counts. A refusal also comes from the
primary, but says that it may have gone on alone since its last heartbeat (I14).

A primary that is a synchronous secondary itself (cascade) says in its heartbeats how long
ago it heard its own primary. While it does not, it gives itself ticks, whose times are
later than anything it knows of: `limit_time` is where what is known ends. It is kept before
the first such tick is taken in: after a crash its time would be claimed.

Source: spec §4.3-4.4, §5.5, §7.6; invariant I14.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from controllerd.model.errors import RemoteCopyError
from controllerd.model.lag import LagClock
from controllerd.replication.messages import Heartbeat
from controllerd.replication.ports import Report
from controllerd.storage.catalogue import Catalogue

FACT: Final = "replication-contacts"
KEEP_S: Final = 5.0
"""How often contacts are kept while a primary writes."""
KEEP_IDLE_S: Final = 60.0
"""How often while all are idle: a system at rest costs next to nothing."""
_NS: Final = 1_000_000_000


class Contact:
    """Contact with the primary of one pair; the pair was ``created`` (wall ns) with equal volumes.

    ``clock`` gives wall ns, ``now_s`` monotonic seconds; ``fresh_s`` as in `LagClock`.
    """

    def __init__(self, created: int, clock: Callable[[], int], now_s: Callable[[], float], fresh_s: float) -> None:
        self.lag = LagClock(fresh_s)
        self.beat: Heartbeat | None = None
        """Newest heartbeat of the primary, of this session or an earlier one."""
        self.on_limit: Callable[[], None] | None = None
        """Called when a heartbeat has named a limit; what it raises the heartbeat raises."""
        self._created = created
        self._clock = clock
        self._now_s = now_s
        self._limit_time = 0
        self._limit_through: int | None = None
        """Number that has to be applied before the limit falls; None: it stands."""

    def heartbeat(self, beat: Heartbeat, heard_s: float) -> None:
        """A heartbeat came in at ``heard_s``.

        Raises:
            DiskFailed: it names a limit, which cannot be kept: nothing that follows it may be taken in.
        """
        self._hear(beat, heard_s)
        if beat.limit_time:
            self._limit_time, self._limit_through = beat.limit_time, None
            if self.on_limit is not None:
                self.on_limit()
        elif self._limit_time and self._limit_through is None:
            self._limit_through = beat.last_seq

    def _hear(self, beat: Heartbeat, heard_s: float) -> None:
        self.beat = beat
        self.lag.heartbeat(beat.last_seq, beat.wall_ns, heard_s, behind_s=beat.behind_ns / _NS)

    def applied(self, sequence: int) -> None:
        """Everything up to the primary's record ``sequence`` is visible."""
        self.lag.applied(sequence)
        if self._limit_through is not None and sequence >= self._limit_through:
            self._limit_time, self._limit_through = 0, None

    # ---- what is asked for -----------------------------------------------------------

    @property
    def limit_time(self) -> int:
        """Write time up to which the primary knew everything; 0: its times say it themselves."""
        return self._limit_time

    @property
    def limit(self) -> tuple[int, int | None]:
        """`limit_time`, and the number that has to be applied before it falls; None: it stands."""
        return self._limit_time, self._limit_through

    @property
    def heard_age_s(self) -> float:
        """Seconds since the last heartbeat, or since the pair was created."""
        if math.isinf(self.lag.heard_s):
            return max(0.0, (self._clock() - self._created) / _NS)
        return max(0.0, self._now_s() - self.lag.heard_s)

    @property
    def unknown_s(self) -> float:
        """Seconds for which nothing is known of what the hosts wrote."""
        return self.heard_age_s + (self.beat.behind_ns / _NS if self.beat is not None else 0.0)

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
            "created": self._created, "heard_at": self.heard_at, "beat": asdict(self.beat),
            "limit_time": self._limit_time, "limit_through": self._limit_through,
        }  # fmt: skip

    def restore(self, document: dict[str, Any]) -> None:
        """Go on from what an earlier run kept; what another pair of the same name kept is nothing to this one."""
        if document["created"] != self._created:
            return
        age_s = max(0.0, (self._clock() - document["heard_at"]) / _NS)
        self._hear(Heartbeat(**document["beat"]), self._now_s() - age_s)
        self.lag.cut()
        self._limit_time, self._limit_through = document["limit_time"], document["limit_through"]


class KeptContacts:
    """The contacts of all pairs of one controller, kept together in one fact of the catalogue.

    ``run_blocking`` does a call in a thread; ``report`` hears when contacts could not be kept.
    """

    def __init__(self, catalogue: Catalogue, run_blocking: Callable[..., Awaitable[Any]], report: Report) -> None:
        self._catalogue = catalogue
        self._run_blocking = run_blocking
        self._report = report
        self._keeping: asyncio.Task[None] | None = None
        self._newest = 0
        """Number of the newest version of what is to be kept; an older one must not undo it."""
        self._writing = threading.Lock()
        self._kept_s = -math.inf
        self._seen: dict[str, int] = {}
        self._limits: dict[str, tuple[int, int | None]] = {}

    def restore(self, contacts: Mapping[str, Contact]) -> None:
        """Give each pair's contact what the run before kept of it."""
        kept: dict[str, Any] = self._catalogue.get_fact(FACT) or {}
        for name, contact in contacts.items():
            if name in kept:
                contact.restore(kept[name])

    def keep(self, contacts: Mapping[str, Contact], now_s: float) -> None:
        """Begin to keep them, if it is time; a crash makes what is known older by what was not kept, never newer."""
        due = now_s - self._kept_s >= (KEEP_S if _numbers(contacts) != self._seen else KEEP_IDLE_S)
        if due and self._keeping is None:
            self._kept_s = now_s  # also when it fails: it is tried again next time
            self._keeping = asyncio.get_running_loop().create_task(self._keep(contacts))

    async def _keep(self, contacts: Mapping[str, Contact]) -> None:
        self._newest = version = self._newest + 1
        seen, limits = _numbers(contacts), _limits(contacts)
        try:
            await self._run_blocking(self._put, version, _documents(contacts))
            if version == self._newest:
                self._seen, self._limits = seen, limits
        except RemoteCopyError as error:
            self._report("contacts-keep-failed", {"error": str(error)})
        finally:
            self._keeping = None

    def _put(self, version: int, documents: dict[str, Any]) -> None:
        with self._writing:
            if version == self._newest:
                self._catalogue.put_fact(FACT, documents)

    async def settle(self) -> None:
        """Return when nothing is under way."""
        if self._keeping is not None:
            await self._keeping

    def keep_limits(self, contacts: Mapping[str, Contact], now_s: float) -> None:
        """Keep them if a limit is not the kept one; durable on return.

        Raises:
            DiskFailed: not kept; it is tried again when asked again.
        """
        if _limits(contacts) != self._limits:
            self.keep_now(contacts, now_s)

    def keep_now(self, contacts: Mapping[str, Contact], now_s: float) -> None:
        """Keep them; durable on return. In the loop: whoever calls must not go on before."""
        self._kept_s = now_s  # also when it fails: it is tried again next time
        self._newest += 1
        self._put(self._newest, _documents(contacts))
        self._seen = _numbers(contacts)
        self._limits = _limits(contacts)


def _documents(contacts: Mapping[str, Contact]) -> dict[str, Any]:
    documents = {name: contact.document() for name, contact in contacts.items()}
    return {name: found for name, found in documents.items() if found is not None}


def _limits(contacts: Mapping[str, Contact]) -> dict[str, tuple[int, int | None]]:
    return {name: contact.limit for name, contact in contacts.items()}


def _numbers(contacts: Mapping[str, Contact]) -> dict[str, int]:
    return {name: contact.beat.last_seq for name, contact in contacts.items() if contact.beat is not None}
