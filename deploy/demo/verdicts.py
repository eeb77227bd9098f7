"""The table at the end: what was claimed, what was seen, and whether that is good.

Owns: the rows and the exit code that follows from them. Never: measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Row:
    """One line. ``good`` is None for a figure that is neither good nor bad."""

    what: str
    seen: str
    good: bool | None = None


@dataclass
class Verdicts:
    """All rows so far."""

    rows: list[Row] = field(default_factory=list)

    def figure(self, what: str, seen: str) -> None:
        """Add a figure that is for information."""
        self.rows.append(Row(what, seen))

    def claim(self, what: str, seen: str, good: bool) -> None:
        """Add a claim and whether it held."""
        self.rows.append(Row(what, seen, good))

    @property
    def good(self) -> bool:
        """Whether every claim held; False if there is none."""
        claims = [row.good for row in self.rows if row.good is not None]
        return bool(claims) and all(claims)

    def lines(self) -> Iterator[str]:
        """The table as text."""
        first = max(len(row.what) for row in self.rows)
        second = max(len(row.seen) for row in self.rows)
        ruler = f"+-{'-' * first}-+-{'-' * second}-+------+"
        yield ruler
        for row in self.rows:
            mark = {None: "", True: "ok", False: "BAD"}[row.good]
            yield f"| {row.what:<{first}} | {row.seen:<{second}} | {mark:<4} |"
        yield ruler
