"""Farewells: telling a primary that its secondary's side of a pair is gone.

Owns: what is still to be told, in the catalogue, and one task per farewell that tries until the peer has heard it.
Never: deletes a pair, or decides what the peer does about it.

A secondary that deletes its side without a connection would leave a primary that waits for it, and keeps its journal
for it, for ever. The other way round nothing is needed: the secondary asks, and hears that the pair is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any, Final

from controllerd.replication.context import Context
from controllerd.replication.frames import Frame, FrameType
from controllerd.replication.links import tell
from controllerd.replication.messages import Farewell, Refuse, RefuseCode
from controllerd.replication.pair_record import PairRecord

TABLE: Final = "farewells"
_HEARD: Final = (RefuseCode.UNKNOWN_PAIR, RefuseCode.WRONG_PEER)


class Farewells:
    """What the peers of pairs that are gone have not heard yet."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Go on with those of the run before."""
        for identity, document in self._context.storage.catalogue.get_documents(TABLE).items():
            self._begin(identity, document)

    async def stop(self) -> None:
        """Try no more until the next start."""
        for identity in list(self._tasks):
            await self._end(identity)

    def add(self, record: PairRecord, reason: str) -> None:
        """Tell the peer of a secondary's pair that it is gone, and why; to be told for sure on return.

        Raises:
            DiskFailed: it cannot be kept; nothing will be told.
        """
        identity = record.spec.identity
        document = {"peer": record.peer, "reason": reason}
        self._context.storage.catalogue.put_document(TABLE, identity, document)
        if identity not in self._tasks:
            self._begin(identity, document)

    async def withdraw(self, identity: str) -> None:
        """The pair is made anew: what its predecessor had to say must not reach it."""
        if identity in self._tasks:
            await self._end(identity)
            self._context.storage.catalogue.delete_document(TABLE, identity)

    def _begin(self, identity: str, document: dict[str, Any]) -> None:
        farewell = Farewell(identity, document["reason"])
        self._tasks[identity] = asyncio.get_running_loop().create_task(self._tell(document["peer"], farewell))

    async def _end(self, identity: str) -> None:
        task = self._tasks.pop(identity)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _tell(self, peer: str, farewell: Farewell) -> None:
        await tell(
            self._context.settings, peer, farewell.encode(), self._context.rng, partial(self._heard, farewell.pair)
        )
        self._tasks.pop(farewell.pair, None)
        self._context.report("peer-told-of-deletion", {"pair": farewell.pair, "peer": peer})

    def _heard(self, identity: str, answer: Frame) -> bool:
        refused = answer.type == FrameType.REFUSE and Refuse.decode_untrusted(answer.payload).code in _HEARD
        if not refused and answer.type != FrameType.FAREWELL:
            return False
        self._context.storage.catalogue.delete_document(TABLE, identity)
        return True
