"""Any damage to the catalogue's file, and rows of any content: what is read is what was kept, or it is Corrupt."""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from pathlib import Path
from typing import Any, Final

from controllerd.model.errors import Corrupt
from controllerd.storage.catalogue import Catalogue
from tests.fuzz.source import Source

_FACTS: Final[dict[str, Any]] = {"owner": "C (serial 1)", "last-volume-id": 7, "clean": True}
_DOCUMENTS: Final[dict[str, dict[str, Any]]] = {
    "group": {"g1": {"group_id": 1, "runs": [[1, 1], [9, 2]]}, "g2": {"group_id": 2, "text": "é" * 300}},
    "volume": {"v": {"size": 1 << 40, "key": (1 << 64) - 1}},
    "none": {},
}
_PAGES: Final = {0: bytes(range(256)) * 16, 3: b"\1" * 4096}
_VOLUME: Final = 7
_COLUMNS: Final = (
    ("facts", "name"), ("facts", "value"), ("facts", "crc"), ("documents", "kind"), ("documents", "name"),
    ("documents", "document"), ("documents", "crc"), ("map_pages", "page"), ("map_pages", "entries"),
    ("map_pages", "crc"),
)  # fmt: skip
_VALUES: Final[tuple[Any, ...]] = (0, -1, 1.5, "", "group", "{}", b"", b"\xff\0", "[" * 5000, 1 << 40)


def run(data: bytes) -> None:
    """Read a catalogue that ``data`` has changed."""
    source = Source(data)
    content = bytearray(_sound())
    with tempfile.TemporaryDirectory(prefix="rc-fuzz-") as directory:
        path = Path(directory) / "catalogue.sqlite"
        for _ in range(source.number(1) % 4):
            place = source.number(2) % len(content)
            piece = source.take(1 + source.number(1) % 8)
            content[place : place + len(piece)] = piece
        if source.number(1) % 8 == 7:
            del content[source.number(2) :]
        path.write_bytes(content)
        if source.number(1) & 1:
            _change_rows(source, path)
        _read(path)


def _read(path: Path) -> None:
    try:
        catalogue = Catalogue(str(path))
    except Corrupt:
        return
    try:
        for name, value in _FACTS.items():
            _compare(lambda name=name: catalogue.get_fact(name), (value, None))
        for kind, known in _DOCUMENTS.items():
            _compare(lambda kind=kind: catalogue.get_documents(kind), (known,))
        _compare(lambda: catalogue.load_map(_VOLUME), (_PAGES,))
    finally:
        catalogue.close()


def _compare(read: Any, known: tuple[Any, ...]) -> None:
    try:
        found = read()
    except Corrupt:
        return
    if isinstance(found, dict) and isinstance(known[0], dict):
        # A row can be lost, as with an older file; what is there is as it was kept.
        assert all(known[0].get(name) == content for name, content in found.items())
    else:
        assert found in known


def _change_rows(source: Source, path: Path) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        for _ in range(1 + source.number(1) % 3):
            table, column = source.pick(_COLUMNS)
            value = source.pick((*_VALUES, source.take(4)))
            try:
                database.execute(
                    f"UPDATE OR REPLACE {table} SET {column} = ?"
                    f" WHERE rowid IN (SELECT rowid FROM {table} LIMIT 1 OFFSET ?)",
                    (value, source.number(1) % 3),
                )
            except (sqlite3.Error, UnicodeDecodeError):
                return  # it is damaged already
    finally:
        database.close()


@functools.cache
def _sound() -> bytes:
    with tempfile.TemporaryDirectory(prefix="rc-fuzz-") as directory:
        path = Path(directory) / "catalogue.sqlite"
        catalogue = Catalogue(str(path))
        for name, value in _FACTS.items():
            catalogue.put_fact(name, value)
        documents = [(kind, name, text) for kind, known in _DOCUMENTS.items() for name, text in known.items()]
        catalogue.checkpoint([(_VOLUME, page, entries) for page, entries in _PAGES.items()], documents)
        catalogue.close()
        return path.read_bytes()
