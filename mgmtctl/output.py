"""What people and scripts see.

Owns: tables, how sizes, times and lags are written, spinners on standard error.
Never: mixes the two: with --json nothing but JSON goes to standard output.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from controllerd.management.schemas import format_size
from mgmtctl.client import as_json
from mgmtctl.errors import CliError, usage_error

UNKNOWN: Final = "-"
_WALL_CLOCK_MIN_NS: Final = 10**17
"""A write time below this (1973) is not a time of day: the source counts, or a host gives its own numbers."""


def print_json(value: Any) -> None:
    """An answer on standard output."""
    sys.stdout.write(as_json(value) + "\n")


def print_line(text: str) -> None:
    """One line for people on standard output, exactly as it is."""
    sys.stdout.write(text + "\n")


def warn(lines: Iterable[str]) -> None:
    """Lines that must not get lost among results: standard error."""
    for line in lines:
        sys.stderr.write(f"warning: {line}\n")


def print_done(answer: Any, text: str, *, as_json: bool, warnings: Iterable[str] = ()) -> None:
    """What an order that changes something says at its end: ``answer`` for scripts, or ``text`` with ``warnings``."""
    if as_json:
        print_json(answer)
    else:
        print_line(text)
        warn(warnings)


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Sequence[str] = ()
) -> Table:
    """A table; ``right`` names the columns of numbers. Cells are never taken for markup."""
    result = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        result.add_column(column.upper(), justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return result


def print_table(content: Table) -> None:
    """A table on standard output; without a terminal it is as wide as it needs to be."""
    console = _console()
    if content.row_count:
        console.print(content, soft_wrap=not sys.stdout.isatty())
    else:
        console.print("none")


def print_wide(render: Callable[[int], RenderableType]) -> None:
    """On standard output what ``render`` makes for so many columns."""
    console = _console()
    console.print(render(console.width), soft_wrap=not sys.stdout.isatty())


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=400, force_terminal=False, color_system=None)


def print_fields(pairs: Iterable[tuple[str, str]]) -> None:
    """One object as "name  value" lines."""
    items = list(pairs)
    width = max((len(name) for name, _ in items), default=0)
    for name, value in items:
        print_line(f"{name:<{width}}  {value}".rstrip())


def size(value: int | None) -> str:
    """Bytes for people."""
    return UNKNOWN if value is None else format_size(value)


def number(value: int | None) -> str:
    """A count or sequence number."""
    return UNKNOWN if value is None else str(value)


def counted(count: int, thing: str) -> str:
    """``1 disk``, ``2 disks``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def write_time(value: int | None) -> str:
    """A write time: local time of day with microseconds, or the plain number where it is none."""
    if value is None:
        return UNKNOWN
    if value < _WALL_CLOCK_MIN_NS:
        return str(value)
    return wall_time(value)


def point(write_time_value: int) -> str:
    """A write time in a sentence, as what it is: a time, or a number where the source counts."""
    if write_time_value < _WALL_CLOCK_MIN_NS:
        return f"write number {write_time_value} (a counter, not a time)"
    return f"write time {wall_time(write_time_value)}"


def wall_time(value: int | None) -> str:
    """Wall-clock ns as local date and time."""
    if value is None:
        return UNKNOWN
    try:
        moment = datetime.fromtimestamp(value // 1_000_000_000, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return str(value)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{value // 1000 % 1_000_000:06d}"


def moment(value: int) -> str:
    """Wall-clock ns as local time of day to the millisecond; with the date when that is not today."""
    text = wall_time(value)
    day, _, time = text.partition(" ")
    return text[:-3] if day != f"{datetime.now().astimezone():%Y-%m-%d}" else time[:-3]


def seconds(value: float | None) -> str:
    """A duration."""
    if value is None:
        return "unknown"
    if value < 100:
        return f"{value:.3f} s"
    whole = round(value)
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


@contextmanager
def spinner(text: str, *, quiet: bool) -> Iterator[None]:
    """Show that something takes its time, when a person is looking."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone; raises CliError when it is not wanted, or nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise usage_error(f"{question} Nobody can be asked here: give --yes")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliError("not confirmed; nothing was done")
