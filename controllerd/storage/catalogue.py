"""Catalogue: the controller's metadata in one SQLite database.

Owns: what disks, pools, groups, volumes, volume maps and pairs exist, and each
group's checkpoint position. Every method is durable when it returns (WAL,
``synchronous=FULL``), and a checkpoint is one transaction (architecture §4).
Every row carries a checksum of its key and content: a database checks neither.
Never: caches, or interprets the documents it keeps for other layers.

Calls block for about a millisecond; the checkpoint calls its one from a thread, so
the connection is shared between threads behind a lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote

from crc32c import crc32c

from controllerd.model.errors import Corrupt, DiskFailed

FORMAT: Final = 2

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    kind TEXT NOT NULL, name TEXT NOT NULL, document TEXT NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (kind, name));
CREATE TABLE IF NOT EXISTS map_pages (
    volume INTEGER NOT NULL, page INTEGER NOT NULL, entries BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (volume, page));
"""

_DAMAGE: Final = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What reading a damaged database raises; the second when the text of the error itself quotes the damage."""

Document = dict[str, Any]
Content = TypeVar("Content", str, bytes)


class Catalogue:
    """The metadata store of one controller. ``path`` may be ``:memory:``.

    Every method that reads raises Corrupt when the file is damaged where it reads.

    Raises:
        Corrupt: the file is not a catalogue, or one of a format this version does not know.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            damage = self._database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise Corrupt(damage)
            self._database.executescript(_SCHEMA)
            known = self.get_fact("format")
        except (*_DAMAGE, Corrupt) as error:
            self._database.close()
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
            try:
                return self._database.execute(query, (argument,)).fetchall()
            except _DAMAGE as error:
                raise Corrupt(f"{self._path}: catalogue: {error}") from error

    def _checked(self, kind: type[Content], seal: object, content: object, *key: str | int) -> Content:
        """Return ``content`` of the row ``key``, which was kept as this ``kind`` with the checksum ``seal``."""
        # A damaged row can have values of any type: what type they have is written in the row.
        if not isinstance(content, kind) or _seal(content, *key) != seal:
            named = " ".join(str(part) for part in key)
            raise Corrupt(f"{self._path}: catalogue: {named} is damaged (its checksum is wrong)")
        return content

    def get_fact(self, name: str) -> Any:
        """Return one fact, or None."""
        rows = self._rows("SELECT value, crc FROM facts WHERE name = ?", name)
        return json.loads(self._checked(str, rows[0][1], rows[0][0], "fact", name)) if rows else None

    def put_fact(self, name: str, value: Any) -> None:
        """Keep one fact."""
        with self._writing():
            text = json.dumps(value)
            self._database.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, text, _seal(text, "fact", name))
            )

    def get_documents(self, kind: str) -> dict[str, Document]:
        """Return every document of a kind, by name."""
        rows = self._rows("SELECT name, document, crc FROM documents WHERE kind = ? ORDER BY name", kind)
        return {name: json.loads(self._checked(str, seal, text, kind, name)) for name, text, seal in rows}

    def put_document(self, kind: str, name: str, document: Document) -> None:
        """Keep one document."""
        with self._writing():
            self._database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", _row(kind, name, document))

    def delete_document(self, kind: str, name: str) -> None:
        """Forget one document, if it is there."""
        with self._writing():
            self._database.execute("DELETE FROM documents WHERE kind = ? AND name = ?", (kind, name))

    def load_map(self, volume_id: int) -> dict[int, bytes]:
        """Return the kept pages of a volume's map, by page number."""
        rows = self._rows("SELECT page, entries, crc FROM map_pages WHERE volume = ?", volume_id)
        for page, entries, seal in rows:
            self._checked(bytes, seal, entries, "map of volume", volume_id, "page", page)
        return {page: entries for page, entries, _ in rows}

    def delete_volume(self, name: str, volume_id: int) -> None:
        """Forget a volume and its map, together."""
        with self._writing():
            self._database.execute("DELETE FROM map_pages WHERE volume = ?", (volume_id,))
            self._database.execute("DELETE FROM documents WHERE kind = 'volume' AND name = ?", (name,))

    def forget_group(self, name: str, volumes: Mapping[str, int]) -> None:
        """Forget a group with its ``volumes`` (name: volume id) and their maps, together."""
        with self._writing():
            database = self._database
            ids, names = [(number,) for number in volumes.values()], [(volume,) for volume in volumes]
            database.executemany("DELETE FROM map_pages WHERE volume = ?", ids)
            database.executemany("DELETE FROM documents WHERE kind = 'volume' AND name = ?", names)
            database.execute(
                "DELETE FROM documents WHERE kind IN ('group', 'destaging', 'damaged') AND name = ?", (name,)
            )

    def checkpoint(
        self, pages: Iterable[tuple[int, int, bytes]], documents: Iterable[tuple[str, str, Document]]
    ) -> None:
        """Keep map pages (volume id, page number, entries) and documents in one transaction."""
        with self._writing():
            self._database.executemany(
                "INSERT OR REPLACE INTO map_pages VALUES (?, ?, ?, ?)",
                [
                    (volume, page, entries, _seal(entries, "map of volume", volume, "page", page))
                    for volume, page, entries in pages
                ],
            )
            self._database.executemany(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", [_row(*document) for document in documents]
            )

    def close(self) -> None:
        """Close the database, once no other thread is at work in it (SQLite would crash the process)."""
        with self._lock:
            self._database.close()


def peek_fact(path: str, name: str, *, in_use: bool) -> Any:
    """One fact of the catalogue at ``path``, or None; nothing there changes. ``in_use``: a controller has it open.

    Raises:
        Corrupt: it cannot be read as a catalogue.
    """
    if not os.path.exists(path):
        return None
    with tempfile.TemporaryDirectory() as directory:
        found = f"file:{quote(path)}?mode=ro"
        if not in_use:
            # A copy: to open a database that was not closed means to put it in order, even for reading only.
            found = f"file:{quote(directory)}/copy"
            try:
                for suffix in filter(lambda suffix: os.path.exists(path + suffix), ("", "-wal")):
                    shutil.copyfile(path + suffix, f"{directory}/copy{suffix}")
            except OSError as error:
                raise Corrupt(f"{path}: {error.strerror}") from error
        try:
            with contextlib.closing(sqlite3.connect(found, uri=True)) as database:
                rows = database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchall()
        except sqlite3.Error as error:
            raise Corrupt(f"{path}: not a usable catalogue: {error}") from error
    return json.loads(rows[0][0]) if rows else None


def _seal(content: str | bytes, *key: str | int) -> int:
    """Checksum of a row: of what it says and of what about."""
    data = content.encode() if isinstance(content, str) else content
    return crc32c(data, crc32c(repr(key).encode()))


def _row(kind: str, name: str, document: Document) -> tuple[str, str, str, int]:
    text = json.dumps(document)
    return kind, name, text, _seal(text, kind, name)
