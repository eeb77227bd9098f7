"""What is kept over a restart of what the pairs of this controller heard: contacts and acknowledgements.

Owns: which figures of which pairs are kept together, and that the last ones are kept when the controller stops.
Never: decides when it is time (`KeptFigures` does).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final

from controllerd.model.errors import RemoteCopyError
from controllerd.replication.contact import Contact, KeptContacts
from controllerd.replication.context import Context
from controllerd.replication.kept import Clocks, Keepable, KeptFigures
from controllerd.replication.register import PairRegister
from controllerd.replication.sender import Sender

ACKS_FACT: Final = "replication-acks"


class KeptPairs:
    """The kept figures of ``pairs``."""

    def __init__(self, context: Context, pairs: PairRegister) -> None:
        self._pairs = pairs
        catalogue, run_blocking = context.storage.catalogue, context.storage.checkpointer.run_blocking
        clocks = Clocks(context.clock, lambda: asyncio.get_running_loop().time(), context.settings.boot)
        self._contacts = KeptContacts(catalogue, run_blocking, context.report, clocks)
        self._acks = KeptFigures(catalogue, ACKS_FACT, run_blocking, context.report, clocks)

    def restore(self) -> None:
        """Give every pair what the run before kept of it."""
        self._contacts.restore(self._of_secondaries)
        self._acks.restore(self._of_primaries)

    def keep(self, now_s: float) -> None:
        """Begin to keep what it is time for."""
        for kept, items in self._kept():
            kept.keep(items, now_s)

    async def finish(self) -> None:
        """Keep what is known now; durable on return, if the catalogue can be written."""
        for kept, items in self._kept():
            await kept.settle()
            with contextlib.suppress(RemoteCopyError):  # what is not kept makes what is known older, never newer
                kept.keep_now(items, asyncio.get_running_loop().time())

    @property
    def _of_secondaries(self) -> dict[str, Contact]:
        return {identity: pair.contact for identity, pair in self._pairs.secondaries.items()}

    @property
    def _of_primaries(self) -> dict[str, Sender]:
        return {identity: pair.sender for identity, pair in self._pairs.primaries.items()}

    def _kept(self) -> list[tuple[KeptFigures, Mapping[str, Keepable]]]:
        """What is kept of those pairs that there are."""
        both: list[tuple[KeptFigures, Mapping[str, Keepable]]] = [
            (self._contacts, self._of_secondaries),
            (self._acks, self._of_primaries),
        ]
        return [(kept, items) for kept, items in both if items]

    def keep_limits(self) -> None:
        """A limit of what may be shown was set: keep it before anything goes on.

        Raises:
            DiskFailed: not kept.
        """
        self._contacts.keep_limits(self._of_secondaries, asyncio.get_running_loop().time())
