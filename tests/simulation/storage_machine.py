"""A machine with a simulated disk that runs the real storage system, life after life.

Owns: the disk and the catalogue that outlive a crash, and running a scenario until it
ends or the power is cut.
Never: knows what the data should be (storage_model does).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from controllerd.storage.catalogue import Catalogue, Document
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss, PowerCut, SimulatedDisk
from tests.simulation.virtual_loop import VirtualLoop

DATA = "/data"


class SimulatedCatalogue(Catalogue):
    """A catalogue whose commits survive every crash, and between whose commits a crash may fall.

    SQLite's own crash safety is taken for granted here. ``previous``: the catalogue of the life before.
    """

    def __init__(self, disk: SimulatedDisk, previous: SimulatedCatalogue | None) -> None:
        self._disk = disk
        self._life = disk.life
        if previous is None:
            self._life = 0
            super().__init__(":memory:")
            self._life = disk.life
        else:
            self._path, self._lock, self._database = previous._path, previous._lock, previous._database

    def _around(self, work: Callable[[], None]) -> None:
        if self._life:
            self._disk.call(self._life, "catalogue", "catalogue")
        work()
        if self._life:
            self._disk.call(self._life, "catalogue-done", "catalogue")

    def put_fact(self, name: str, value: Any) -> None:
        self._around(lambda: Catalogue.put_fact(self, name, value))

    def put_document(self, kind: str, name: str, document: Document) -> None:
        self._around(lambda: Catalogue.put_document(self, kind, name, document))

    def delete_document(self, kind: str, name: str) -> None:
        self._around(lambda: Catalogue.delete_document(self, kind, name))

    def delete_volume(self, name: str, volume_id: int) -> None:
        self._around(lambda: Catalogue.delete_volume(self, name, volume_id))

    def forget_group(self, name: str, volumes: Mapping[str, int]) -> None:
        self._around(lambda: Catalogue.forget_group(self, name, volumes))

    def checkpoint(
        self, pages: Iterable[tuple[int, int, bytes]], documents: Iterable[tuple[str, str, Document]]
    ) -> None:
        self._around(lambda: Catalogue.checkpoint(self, pages, documents))

    def close(self) -> None:
        """Stay open for the next life."""

    def take_from(self, other: SimulatedCatalogue) -> None:
        """Become a copy of another catalogue."""
        other._database.backup(self._database)

    def spoil(self, rng: random.Random) -> None:
        """Change a character of a row, as rot would that SQLite does not see (F16): its checksum stays as it was."""
        table, column = rng.choice((("facts", "value"), ("documents", "document")))
        rows = self._database.execute(f"SELECT rowid, {column} FROM {table} ORDER BY rowid").fetchall()
        row, text = rng.choice(rows)
        place = rng.randrange(len(text))
        spoilt = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        self._database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (spoilt, row))

    def rows(self) -> list[object]:
        """Return all that is in the catalogue."""
        tables = ("facts", "documents", "map_pages")
        return [row for table in tables for row in self._database.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]

    def destroy(self) -> None:
        """Close for good."""
        Catalogue.close(self)


@dataclass
class Machine:
    """One controller's hardware. ``settings``: those of every life from now on. ``boots``: how often it was on.

    If the settings do not name the machine's present run, ``boots`` does.
    """

    rng: random.Random
    settings: StorageSettings
    disk: SimulatedDisk
    catalogue: SimulatedCatalogue | None = None
    boots: int = 1

    @classmethod
    def make(cls, rng: random.Random, settings: StorageSettings, capacity: int | None = None) -> Machine:
        """A machine with an empty data directory."""
        disk = SimulatedDisk(rng, capacity=capacity)
        disk.make_directory(settings.data_directory)
        return cls(rng, settings, disk)

    def run(self, scenario: Callable[[StorageSystem], Awaitable[None]], cut_in: int | None = None) -> bool:
        """Boot, start the storage system, and run ``scenario``; True if it ended before the cut.

        Whoever called decides what the crash that follows leaves (`SimulatedDisk.crash`).
        ``cut_in`` counts calls to disk and catalogue, those of the start included.
        """
        files = self.disk.boot()
        self.disk.cut_in = cut_in
        loop = VirtualLoop()
        try:
            return loop.run_until_complete(self._life(files, scenario))
        finally:
            self.disk.on_cut = lambda: None
            loop.close()

    async def _life(self, files: Any, scenario: Callable[[StorageSystem], Awaitable[None]]) -> bool:
        loop = asyncio.get_running_loop()
        cut = loop.create_future()
        self.disk.on_cut = lambda: None if cut.done() else cut.set_result(None)
        task = loop.create_task(self._start(files, scenario))
        await asyncio.wait({task, cut}, return_when=asyncio.FIRST_COMPLETED)
        ended = task.done() and not self.disk.down
        self.disk.down = True
        others = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if ended:
            task.result()
        elif task.done() and not task.cancelled():
            error = task.exception()
            if error is not None and not isinstance(error, PowerCut | asyncio.CancelledError):
                raise error
        return ended

    async def _start(self, files: Any, scenario: Callable[[StorageSystem], Awaitable[None]]) -> None:
        self.catalogue = SimulatedCatalogue(self.disk, self.catalogue)
        system = StorageSystem(
            replace(self.settings, boot=self.settings.boot or f"boot {self.boots}"),
            files,
            clock=self._clock,
            report=lambda _event, _facts: None,
            rng=random.Random(self.rng.getrandbits(64)),
            catalogue=self.catalogue,
        )
        await system.start()
        await scenario(system)

    def _clock(self) -> int:
        return 1_700_000_000_000_000_000 + int(asyncio.get_running_loop().time() * 1e9)

    def crash(self, loss: Loss) -> None:
        """End the life that `run` left."""
        self.disk.crash(loss)
        self.boots += loss is not Loss.KILL

    def destroy(self) -> None:
        """Free what the machine holds."""
        if self.catalogue is not None:
            self.catalogue.destroy()
