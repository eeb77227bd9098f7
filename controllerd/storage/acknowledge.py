"""Acknowledgement: when the writes of a group are complete, flushed and durable.

Owns: the three horizons of a group, the journal syncs that move them, and what the
synchronous peer has confirmed.
Never: journals, or decides what happens when the peer stays silent (replication does).

    complete  hosts may be told "done": journaled here (durable, if the group is
              ``stable``) and, with a mirror, journaled at the peer (RC ¶57)
    flushed   survives power loss, at the mirror too (FLUSH, FUA)
    durable   survives power loss here
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

from controllerd.model.errors import Busy, JournalFailed, RemoteCopyError
from controllerd.storage.horizons import Horizon, Waiter
from controllerd.storage.journal import Journal

Durability = Literal["cache", "stable"]

_STREAK: Final = 3
"""After so many flushes that came after one commit each, the next commit is synced before its flush is here."""


class Acknowledgement:
    """Horizons of one group over its ``journal``; numbers are the group's sequence numbers."""

    def __init__(self, journal: Journal, durability: Durability, reached: int) -> None:
        self._journal = journal
        self.durability: Durability = durability
        self.journaled = reached
        self.mirrored = False
        self.mirror_flush_wanted: Callable[[int], None] | None = None
        self.on_failed: Callable[[], None] = lambda: None
        """Called when the journal failed, after everyone who waited got the error."""
        self._mirror_acked = 0
        self._mirror_durable = 0
        self._syncing = False
        self._sync_wanted = reached
        self._unflushed = 0
        """Commits since the last flush."""
        self._flush_streak = 0
        """Flushes in a row that came after one commit each."""
        self.complete = Horizon(reached)
        self.flushed = Horizon(reached)
        self.durable = Horizon(reached)

    def committed(self, sequence: int) -> None:
        """Records through ``sequence`` are in the journal."""
        self.journaled = sequence
        self._unflushed += 1
        if self.durability == "stable":
            self.request_sync(sequence)
            return
        if self._unflushed == 1 and self._flush_streak >= _STREAK:
            # A database's commit: the flush is on its way. When it is here, much of the sync will be done.
            self.request_sync(sequence)
        if not self.mirrored:
            self.complete.advance(sequence)

    def recovered(self, sequence: int) -> None:
        """Recovery found and synced everything through ``sequence``."""
        self.journaled = self._sync_wanted = sequence
        for horizon in (self.complete, self.flushed, self.durable):
            horizon.advance(sequence)

    def restart(self, sequence: int) -> None:
        """The journal begins anew behind ``sequence``; who still waits gets an error."""
        for horizon in (self.complete, self.flushed, self.durable):
            horizon.fail(Busy("the group's journal began anew"))
        self.complete, self.flushed, self.durable = Horizon(sequence), Horizon(sequence), Horizon(sequence)
        self.journaled = self._sync_wanted = sequence
        self.mirrored = False

    def fail(self, error: RemoteCopyError) -> None:
        """The journal failed: nobody who waits will be served (I4)."""
        for horizon in (self.complete, self.flushed, self.durable):
            horizon.fail(error)
        self.on_failed()

    # ---- waiting -------------------------------------------------------------

    def when_complete(self, sequence: int, waiter: Waiter) -> None:
        """Call ``waiter`` when the write may be acknowledged."""
        if self._journal.failed is not None:
            waiter(self._journal.failed)
            return
        self.complete.when(sequence, waiter)

    def when_flushed(self, sequence: int, waiter: Waiter) -> None:
        """Call ``waiter`` when the write survives power loss; begins what is needed for it."""
        if self._journal.failed is not None:
            waiter(self._journal.failed)
            return
        if self._unflushed:
            self._flush_streak = self._flush_streak + 1 if self._unflushed == 1 else 0
            self._unflushed = 0
        self.flushed.when(sequence, waiter)
        if sequence > self.flushed.reached:
            self.request_sync(sequence)
            if self.mirrored and self.mirror_flush_wanted is not None:
                self.mirror_flush_wanted(sequence)

    def when_durable(self, sequence: int, waiter: Waiter) -> None:
        """Call ``waiter`` when the journal holds the record durably; begins the sync."""
        if self._journal.failed is not None:
            waiter(self._journal.failed)
            return
        self.durable.when(sequence, waiter)
        self.request_sync(sequence)

    async def make_durable(self) -> int:
        """Return when everything journaled before the call is durable, with its last number.

        Raises:
            JournalFailed: it cannot be.
        """
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        target = self.journaled

        def finish(error: RemoteCopyError | None) -> None:
            if not done.done():
                if error is None:
                    done.set_result(target)
                else:
                    done.set_exception(error)

        self.when_durable(target, finish)
        return await done

    # ---- syncing -------------------------------------------------------------

    def request_sync(self, sequence: int) -> None:
        """Begin a journal sync unless ``sequence`` is durable; one sync serves all who wait (spec §3.5)."""
        if sequence > self._sync_wanted:
            self._sync_wanted = sequence
        if not self._syncing and self._sync_wanted > self.durable.reached:
            self._syncing = True
            # Not at once: others who are served in this turn of the loop share the sync.
            asyncio.get_running_loop().call_soon(self._sync)

    def _sync(self) -> None:
        if self._sync_wanted > self.durable.reached and self.journaled > self.durable.reached:
            self._journal.begin_sync(partial(self._synced, self.durable))
        else:
            self._syncing = False

    def _synced(self, durable: Horizon, target: int, error: JournalFailed | None) -> None:
        self._syncing = False
        if error is not None:
            self.fail(error)
            return
        durable.advance(target)
        self.update()
        self.request_sync(0)

    def update(self) -> None:
        """Move the horizons as far as journal and mirror allow."""
        complete = self.journaled if self.durability == "cache" else self.durable.reached
        flushed = self.durable.reached
        if self.mirrored:
            complete = min(complete, self._mirror_acked)
            flushed = min(flushed, self._mirror_durable)
        self.complete.advance(complete)
        self.flushed.advance(flushed)

    # ---- synchronous leg, primary side ----------------------------------------

    def set_mirror(self, required: bool, acked: int = 0, durable: int = 0) -> None:
        """Make completion wait for the synchronous peer, or no longer (spec §4.4).

        With a mirror the horizons may step back to what the peer is known to have, so that
        after a restart a flush waits until the last records are at the peer too (I4).
        """
        self.mirrored = required
        self._mirror_acked, self._mirror_durable = acked, durable
        if required:
            self.complete.step_back(acked)
            self.flushed.step_back(durable)
        self.update()

    def mirror_progress(self, acked: int, durable: int) -> None:
        """The synchronous peer has journaled through ``acked`` and synced through ``durable``."""
        self._mirror_acked = max(self._mirror_acked, acked)
        self._mirror_durable = max(self._mirror_durable, durable)
        self.update()

    def fail_waiting(self, error: RemoteCopyError) -> None:
        """Answer everyone who waits for the mirror with ``error`` (fence level data)."""
        self.complete.fail(error)
        self.flushed.fail(error)
