"""What the primaries told last, kept over restarts, so that a takeover can say what is missing.

Owns: the facts (`Heard`), and keeping them in the catalogue about once a second while they
change, and when a connection ends.
Never: decides what they mean; takeover.py and status.py do.

What a reader would get wrong: after a restart they may be older than what was heard last, so
every figure made of them is a lower bound, known as of ``at``.

Source: spec §7.6; invariant I14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from controllerd.model.errors import RemoteCopyError
from controllerd.storage.background import Background

if TYPE_CHECKING:
    from controllerd.replication.context import Context
    from controllerd.replication.secondary import SecondaryPair

TABLE: Final = "heard"
INTERVAL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Heard:
    """A primary's newest heartbeat. Times of it in ns of its clocks, ``at`` in ns of this controller's.

    Attributes:
        generation: of the group that it is about.
        seq, time: the last record and its write time; wall: when it said so, or later if data came after.
        at: when anything was heard last.
        missing_bytes: bytes of records that were not here then.
        image_wall: the image has all that the primary had at this time of its wall clock; None: not known.
    """

    generation: int
    seq: int
    time: int
    wall: int
    at: int
    missing_bytes: int
    image_wall: int | None


class HeardKeeper:
    """Keeps what the receivers of ``pairs()`` have heard."""

    def __init__(self, context: Context, pairs: Callable[[], Iterable[SecondaryPair]]) -> None:
        self._context = context
        self._pairs = pairs
        self._kept: dict[str, tuple[int, ...]] = {}
        self._background = Background(INTERVAL_S, self._turn)
        self.start = self._background.start
        self.poke = self._background.poke

    def load(self) -> None:
        """Give every receiver what was kept of its pair."""
        documents = self._context.storage.catalogue.get_documents(TABLE)
        for pair in self._pairs():
            document = documents.get(pair.record.spec.identity)
            if document is not None and document["generation"] == pair.record.generation:
                pair.receiver.remember(Heard(**document))

    def forget(self, identity: str) -> None:
        """The pair is deleted."""
        self._kept.pop(identity, None)
        self._context.storage.catalogue.delete_document(TABLE, identity)

    async def stop(self) -> None:
        """Keep the last state, and stop."""
        await self._background.stop()
        await self._turn()

    async def _turn(self) -> None:
        documents = []
        for pair in self._pairs():
            heard, identity = pair.receiver.heard, pair.record.spec.identity
            if heard is None:
                continue
            # A primary at rest says the same again and again, and nothing is written for that.
            news = (heard.seq, heard.time) if pair.receiver.connected else (heard.seq, heard.time, heard.at)
            if self._kept.get(identity) != news:
                self._kept[identity] = news
                documents.append((TABLE, identity, asdict(heard)))
        if documents:
            storage = self._context.storage
            try:
                await storage.checkpointer.run_blocking(storage.catalogue.checkpoint, [], documents)
            except RemoteCopyError as error:
                self._kept.clear()
                self._context.report("heard-not-kept", {"error": str(error)})
