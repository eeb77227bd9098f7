"""Kept figures: what this controller heard of the other side of its pairs, kept over a restart.

Owns: when the figures of all pairs are written to the catalogue, together, and the order of these writes.
Never: knows what the figures mean; `Contact` and `Sender` make and read their documents.

What is kept is older than what is known, by `KEEP_S` and a write of the catalogue at the most, never newer.
While nothing is heard nothing is written. Writes are made off the event loop: the catalogue syncs each.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from controllerd.model.errors import RemoteCopyError
from controllerd.replication.ports import Report
from controllerd.storage.catalogue import Catalogue

KEEP_S: Final = 5.0
"""How often figures are kept while anything is heard."""

RunBlocking = Callable[..., Awaitable[Any]]
"""Let a thread call a function with these arguments."""


class Keepable(Protocol):
    """What is kept of one pair."""

    @property
    def heard_mark(self) -> tuple[float, int]:
        """Something else whenever the other side was heard."""

    def document(self) -> dict[str, Any] | None:
        """What is kept, as JSON values; None: nothing was heard yet."""

    def restore(self, document: dict[str, Any]) -> None:
        """Go on from what an earlier run kept."""


class KeptFigures:
    """The figures of all pairs of one controller in which it has the same role, in one fact of the catalogue."""

    def __init__(self, catalogue: Catalogue, fact: str, run_blocking: RunBlocking, report: Report) -> None:
        self._catalogue = catalogue
        self._fact = fact
        self._run_blocking = run_blocking
        self._report = report
        self._kept_s = -math.inf
        self._seen: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()
        self._order = 0
        self._written = 0
        self._writing: asyncio.Task[None] | None = None

    def restore(self, items: Mapping[str, Keepable]) -> None:
        """Give each pair what the run before kept of it."""
        kept: dict[str, Any] = self._catalogue.get_fact(self._fact) or {}
        for name, item in items.items():
            if name in kept:
                item.restore(kept[name])

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
        self._writing = asyncio.ensure_future(self._written_soon(self._order, _documents(items)))

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
        self._write(self._order, _documents(items))

    async def settle(self) -> None:
        """Return when nothing is being written."""
        if self._writing is not None:
            await self._writing

    def _write(self, order: int, documents: dict[str, Any]) -> None:
        with self._lock:
            if order > self._written:  # a newer one overtook it
                self._catalogue.put_fact(self._fact, documents)
                self._written = order


def _documents(items: Mapping[str, Keepable]) -> dict[str, Any]:
    documents = {name: item.document() for name, item in items.items()}
    return {name: found for name, found in documents.items() if found is not None}
