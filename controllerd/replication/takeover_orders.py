"""Takeover orders: previewing, ordering and finishing the takeover of an apply domain of this controller.

Owns: whether a domain may be taken over now, and going on after a crash.
Never: takes the steps (takeover.py does).
"""

from __future__ import annotations

import asyncio

from controllerd.model.errors import Busy, Conflict, NotFound, RemoteCopyError
from controllerd.model.pair_state import PairState
from controllerd.replication.context import Context
from controllerd.replication.register import PairRegister
from controllerd.replication.takeover import TABLE, Takeover, find_undecided, is_undecided
from controllerd.replication.takeover_report import TakeoverReport


class TakeoverOrders:
    """Orders on the domains of ``pairs``; ``lock`` is held by every order on pairs."""

    def __init__(self, context: Context, pairs: PairRegister, lock: asyncio.Lock) -> None:
        self._context = context
        self._pairs = pairs
        self._lock = lock

    def preview(self, domain: str = "default") -> TakeoverReport:
        """Say what a takeover of ``domain`` would give now, and what would be missing. Changes nothing.

        Raises:
            NotFound: the domain has no secondary group here.
        """
        return self._takeover(domain).preview()

    async def run(self, domain: str = "default") -> TakeoverReport:
        """Take over ``domain``: its volumes are writable on return, at one consistent cut (spec §7.6).

        May be repeated after any failure or crash; a finished takeover gives its report again.

        Raises:
            NotFound: the domain has no secondary group here.
            BadOrder: a pair is in a state that does not allow it.
            Conflict: the copy of a group was taken over itself, at a site further on: hosts write there.
            StorageError: what arrived cannot be made durable or visible; repeat when it can.
        """
        async with self._lock:
            takeover = self._takeover(domain)
            self._check_further_on(domain)
            return await takeover.run()

    def _check_further_on(self, domain: str) -> None:
        """Refuse to take over a group that has been fenced: its volumes could not be written (I16)."""
        groups = {pair.group.name for pair in self._pairs.secondaries.values() if pair.record.spec.domain == domain}
        for primary in self._pairs.primaries.values():
            record = primary.record
            if record.group in groups and record.state is PairState.SSWS:
                raise Conflict(
                    f"group {record.group}: {record.reason}; hosts write at {record.peer} now. To write here all the"
                    f" same, delete pair {record.spec.identity} here first",
                    group=record.group,
                )

    def _takeover(self, name: str) -> Takeover:
        domain = self._pairs.domains.get(name)
        if domain is None:
            known = ", ".join(sorted(self._pairs.domains)) or "none"
            raise NotFound(f"no apply domain named {name} here (there are: {known})", domain=name)
        pairs = [pair for pair in self._pairs.secondaries.values() if pair.domain is domain]
        return Takeover(domain, pairs, self._context)

    def under_way(self, domain: str) -> bool:
        """Whether a takeover of ``domain`` is decided and not finished."""
        return find_undecided(self._context.storage.catalogue, domain) is not None

    def check(self, domain: str) -> None:
        """Refuse an order on a domain meanwhile.

        Raises:
            Busy: one is under way.
        """
        if self.under_way(domain):
            raise Busy(f"a takeover of domain {domain} is under way; order it again to finish it")

    async def finish(self) -> None:
        """Finish those that a crash left undone, after a start."""
        for name, document in self._context.storage.catalogue.get_documents(TABLE).items():
            if is_undecided(document) and name in self._pairs.domains:
                self._pairs.domains[name].freeze()
                await self._finish(name)

    async def _finish(self, domain: str) -> None:
        try:
            await self._takeover(domain).run()
        except RemoteCopyError as error:
            # It stays decided: nothing is pulled, and ordering it again goes on with it.
            self._context.report("takeover-unfinished", {"domain": domain, "error": str(error)})
