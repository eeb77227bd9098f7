"""Plants a defect in a copy of the tree.

Owns: what a defect is, the copy, and that an edit fits exactly once.
Never: runs anything of the copy (`hunt` does).
"""

from __future__ import annotations

import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
_PARTS: Final = ("controllerd", "hostsim", "mgmtctl", "tests", "deploy", "pyproject.toml")


class DoesNotFit(Exception):
    """The source has changed: the text to be replaced is not there, or more than once."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace ``old`` in file ``path`` (relative to the tree) by ``new``."""

    path: str
    old: str
    new: str

    def apply(self, text: str) -> str:
        """Return the file's text with the edit.

        Raises:
            DoesNotFit: ``old`` is not in ``text`` exactly once.
        """
        found = text.count(self.old)
        if found != 1:
            raise DoesNotFit(f"{self.path}: {found} times {self.old!r}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Defect:
    """A mistake. ``breaks``: the invariants it is about.

    The swarm hunts for it first, then ``others``, the best first (see `hunt`). ``unseen``: why the swarm
    cannot see it and is not asked.
    """

    name: str
    breaks: str
    others: tuple[str, ...]
    edits: tuple[Edit, ...]
    unseen: str = ""

    @property
    def hunters(self) -> tuple[str, ...]:
        """All who hunt for it, in order."""
        return self.others if self.unseen else ("swarm", *self.others)

    @property
    def digest(self) -> str:
        """Which edits these are, wherever the code is: a result is that of the same defect as long as this is."""
        return f"{zlib.crc32(repr([(edit.old, edit.new) for edit in self.edits]).encode()):08x}"


def check_fits(defect: Defect, root: Path = ROOT) -> None:
    """Say whether a defect can be planted in the tree as it is now.

    Raises:
        DoesNotFit: it cannot.
    """
    for path, text in _edited(defect, root).items():
        compile(text, path, "exec")


def plant(defect: Defect, target: Path, root: Path = ROOT) -> None:
    """Copy the tree to ``target`` (which must not exist) and plant the defect there.

    Raises:
        DoesNotFit: the source has changed.
    """
    edited = _edited(defect, root)
    target.mkdir(parents=True)
    for part in _PARTS:
        source = root / part
        if source.is_dir():
            shutil.copytree(source, target / part)  # with what is compiled: times are kept, but for edited files
        elif source.exists():
            shutil.copy(source, target / part)
    for path, text in edited.items():
        (target / path).write_text(text)


def _edited(defect: Defect, root: Path) -> dict[str, str]:
    edited: dict[str, str] = {}
    for edit in defect.edits:
        text = edited.get(edit.path) or (root / edit.path).read_text()
        try:
            edited[edit.path] = edit.apply(text)
        except DoesNotFit as error:
            raise DoesNotFit(f"defect {defect.name}: {error}") from None
    return edited
