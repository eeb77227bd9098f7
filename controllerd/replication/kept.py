"""Kept figures: what this controller heard of the other side of its pairs, kept over a restart.

Owns: when the figures of all pairs are written to the catalogue, together, and the order of these writes.
Never: knows what the figures mean; `Contact` and `Sender` make and read their documents.

What is kept is older than what is known, by `KEEP_S` and a write of the catalogue at the most, never newer.
Its moments are in wall time, and wall clocks are set. So the monotonic clock is kept beside them: it tells by how much,
as long as the machine runs on. Over a reboot the wall clock is believed, unless it shows less than it did.
While nothing is heard nothing is written. Writes are made off the event loop: the catalogue syncs each.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from controllerd.model.errors import RemoteCopyError
from controllerd.replication.ports import Report
from controllerd.storage.catalogue import Catalogue

KEEP_S: Final = 5.0
"""How often figures are kept while anything is heard."""
_NS: Final = 1_000_000_000
_READINGS: Final = "clocks"
"""Where a kept document says what the clocks showed when it was made."""

RunBlocking = Callable[..., Awaitable[Any]]
"""Let a thread call a function with these arguments."""


class Keepable(Protocol):
    """What is kept of one pair."""

    @property
    def heard_mark(self) -> tuple[float, float]:
        """Something else whenever the other side was heard."""

    def document(self) -> dict[str, Any] | None:
        """What is kept, as JSON values; None: nothing was heard yet."""

    def restore(self, document: dict[str, Any], set_ns: int | None) -> None:
        """Go on from what an earlier run kept, when the wall clock was set by ``set_ns`` since.

        None: how long ago that was is not known, but that its moments seem to be still to come.
        """


@dataclass(frozen=True, slots=True)
class Clocks:
    """``wall`` gives ns, ``mono_s`` seconds that rise while the machine runs; ``boot`` names that run ("": unknown)."""

    wall: Callable[[], int]
    mono_s: Callable[[], float]
    boot: str = ""

    def readings(self) -> tuple[str, float, int]:
        """What they show now."""
        return self.boot, self.mono_s(), self.wall()

    def set_since(self, boot: str, mono_s: float, wall_ns: int) -> int | None:
        """By how many ns the wall clock was set since these readings; None: back, and nobody knows by how much."""
        passed_s, passed_ns = self.mono_s() - mono_s, self.wall() - wall_ns
        if boot and boot == self.boot and passed_s >= 0:
            return passed_ns - round(passed_s * _NS)
        return 0 if passed_ns >= 0 else None


class KeptFigures:
    """The figures of all pairs of one controller in which it has the same role, in one fact of the catalogue."""

    def __init__(
        self, catalogue: Catalogue, fact: str, run_blocking: RunBlocking, report: Report, clocks: Clocks
    ) -> None:
        self._catalogue = catalogue
        self._clocks = clocks
        self._fact = fact
        self._run_blocking = run_blocking
        self._report = report
        self._kept_s = -math.inf
        self._seen: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self._order = 0
        self._written = 0
        self._writing: asyncio.Task[None] | None = None

    def restore(self, items: Mapping[str, Keepable]) -> None:
        """Give each pair what the run before kept of it."""
        kept: dict[str, Any] = self._catalogue.get_fact(self._fact) or {}
        for name, item in items.items():
            if name in kept:
                readings = kept[name].get(_READINGS)
                item.restore(kept[name], self._clocks.set_since(*readings) if readings else 0)

    def keep(self, items: Mapping[str, Keepable], now_s: float) -> None:
        """Begin to keep them if it is time and anything was heard; that it failed is reported."""
        if self._writing is not None:
            return
        heard = {name: item.heard_mark for name, item in items.items()}
        if now_s - self._kept_s >= KEEP_S and heard != self._seen:
            self._kept_s, self._seen = now_s, heard
            self.begin(items)

    def begin(self, items: Mapping[str, Keepable]) -> None:
        """Begin to keep what is known now."""
        self._order += 1
        self._writing = asyncio.ensure_future(self._written_soon(self._order, self._documents(items)))

    async def _written_soon(self, order: int, documents: dict[str, Any]) -> None:
        try:
            await self._run_blocking(self._write, order, documents)
        except RemoteCopyError as error:
            self._seen = {}  # tried again when it is time
            self._report("contacts-keep-failed", {"error": str(error)})
        finally:
            self._writing = None

    def keep_now(self, items: Mapping[str, Keepable], now_s: float) -> None:
        """Keep them; durable on return.

        Raises:
            DiskFailed: not kept.
        """
        self._kept_s = now_s  # also when it fails: it is tried again next time
        self._order += 1
        self._write(self._order, self._documents(items))

    async def settle(self) -> None:
        """Return when nothing is being written."""
        if self._writing is not None:
            await self._writing

    def _write(self, order: int, documents: dict[str, Any]) -> None:
        with self._lock:
            if order > self._written:  # a newer one overtook it
                self._catalogue.put_fact(self._fact, documents)
                self._written = order

    def _documents(self, items: Mapping[str, Keepable]) -> dict[str, Any]:
        readings = self._clocks.readings()
        documents = {name: item.document() for name, item in items.items()}
        return {name: {**found, _READINGS: readings} for name, found in documents.items() if found is not None}
