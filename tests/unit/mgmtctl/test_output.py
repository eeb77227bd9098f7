from __future__ import annotations

import pytest

from controllerd.management.schemas import PairStatus
from mgmtctl import output
from mgmtctl.status import _remarks

NOW = 1_800_000_000_123_456_789


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0.0, "0.000 s"), (1.5, "1.500 s"), (100.0, "1 min 40 s"), (7260.0, "2 h 1 min")],
)
def test_durations(value: float | None, text: str) -> None:
    assert output.seconds(value) == text


def test_write_times_are_times_or_plain_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    assert output.write_time(None) == "-"
    assert output.write_time(0) == "0"
    assert output.write_time(123456) == "123456", "a counter of the time source sequence"
    assert output.write_time(NOW).endswith(".123456")
    assert output.wall_time((1 << 64) - 1) != ""


def test_point_of_an_image_is_said_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    assert output.point(1) == "write number 1 (a counter, not a time)"
    assert output.point(NOW).startswith("write time 2027-")


def test_sizes() -> None:
    assert [output.size(value) for value in (None, 4096)] == ["-", "4 KiB"]


def test_text_of_others_is_never_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(output.table("", ("name",), [("[red]x[/nonsense]",)]))
    assert "[red]x[/nonsense]" in capsys.readouterr().out


def test_wide_tables_are_not_cut_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(output.table("", ("path", "next"), [("/very/long/" + "x" * 300, "end")]))
    line = capsys.readouterr().out.splitlines()[1]
    assert "x" * 300 in line
    assert "end" in line


def test_status_of_a_blocked_primary_says_that_writes_fail() -> None:
    entry = PairStatus(group="g", role="primary", state="PAIR", peer="B", blocked=True)
    assert _remarks(entry) == ["hosts cannot write (EIO) until the secondary has caught up"]
