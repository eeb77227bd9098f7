"""Catalogue: the controller's metadata in one SQLite database.

Owns: what disks, pools, groups, volumes, volume maps and pairs exist, and each
group's checkpoint position. Every method is durable when it returns (WAL,
``synchronous=FULL``), and a checkpoint is one transaction (architecture §4).
Never: caches, or interprets the documents it keeps for other layers.

Calls block for about a millisecond; the checkpoint calls its one from a thread, so
the connection is shared between threads behind a lock.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final

from controllerd.model.errors import Corrupt, DiskFailed

FORMAT: Final = 1

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    kind TEXT NOT NULL, name TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (kind, name));
CREATE TABLE IF NOT EXISTS map_pages (
    volume INTEGER NOT NULL, page INTEGER NOT NULL, entries BLOB NOT NULL, PRIMARY KEY (volume, page));
"""

Document = dict[str, Any]


class Catalogue:
    """The metadata store of one controller. ``path`` may be ``:memory:``.

    Raises:
        Corrupt: the file is not a catalogue, or one of a format this version does not know.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
            known = self.get_fact("format")
        except sqlite3.DatabaseError as error:
            raise Corrupt(f"{path}: not a usable catalogue: {error}") from error
        if known is None:
            self.put_fact("format", FORMAT)
        elif known != FORMAT:
            raise Corrupt(f"{path}: catalogue format {known}, this version reads format {FORMAT}")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock and one transaction.

        Raises:
            DiskFailed: it could not be committed (full or failing disk); nothing of it was kept.
        """
        with self._lock:
            try:
                with self._database:
                    self._database.execute("BEGIN IMMEDIATE")
                    yield
            except sqlite3.Error as error:
                raise DiskFailed(f"catalogue: {error}") from error

    def _rows(self, query: str, argument: object) -> list[Any]:
        """All rows of a query; not in the middle of another thread's transaction."""
        with self._lock:
            return self._database.execute(query, (argument,)).fetchall()

    def get_fact(self, name: str) -> Any:
        """Return one fact, or None."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", name)
        row = rows[0] if rows else None
        return None if row is None else json.loads(row[0])

    def put_fact(self, name: str, value: Any) -> None:
        """Keep one fact."""
        with self._writing():
            self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def get_documents(self, kind: str) -> dict[str, Document]:
        """Return every document of a kind, by name."""
        rows = self._rows("SELECT name, document FROM documents WHERE kind = ? ORDER BY name", kind)
        return {name: json.loads(text) for name, text in rows}

    def put_document(self, kind: str, name: str, document: Document) -> None:
        """Keep one document."""
        with self._writing():
            self._database.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (kind, name, json.dumps(document))
            )

    def delete_document(self, kind: str, name: str) -> None:
        """Forget one document, if it is there."""
        with self._writing():
            self._database.execute("DELETE FROM documents WHERE kind = ? AND name = ?", (kind, name))

    def load_map(self, volume_id: int) -> dict[int, bytes]:
        """Return the kept pages of a volume's map, by page number."""
        return dict(self._rows("SELECT page, entries FROM map_pages WHERE volume = ?", volume_id))

    def delete_volume(self, name: str, volume_id: int) -> None:
        """Forget a volume and its map, together."""
        with self._writing():
            self._database.execute("DELETE FROM map_pages WHERE volume = ?", (volume_id,))
            self._database.execute("DELETE FROM documents WHERE kind = 'volume' AND name = ?", (name,))

    def checkpoint(
        self, pages: Iterable[tuple[int, int, bytes]], documents: Iterable[tuple[str, str, Document]]
    ) -> None:
        """Keep map pages (volume id, page number, entries) and documents in one transaction."""
        with self._writing():
            self._database.executemany("INSERT OR REPLACE INTO map_pages VALUES (?, ?, ?)", pages)
            self._database.executemany(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)",
                [(kind, name, json.dumps(document)) for kind, name, document in documents],
            )

    def close(self) -> None:
        """Close the database, once no other thread is at work in it (SQLite would crash the process)."""
        with self._lock:
            self._database.close()
