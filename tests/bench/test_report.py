"""Arithmetic of the benchmark's report: pairs of one round are compared, then medians are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.jobs import JOBS, Figures
from tests.bench.report import Results, Target, append_history, as_document, tables, verdict_lines, verdicts

_JOB = JOBS[1]
_TARGET = Target(_JOB.name, "ours", 2.0, "theirs")


def _results(*pairs: tuple[float, float]) -> Results:
    results = Results()
    for number, (ours, theirs) in enumerate(pairs):
        results.add(number, _JOB, "ours", Figures(ours, 10.0, 20.0, 30.0))
        results.add(number, _JOB, "theirs", Figures(theirs, 10.0, 20.0, 30.0))
    return results


def test_ratio_is_the_median_of_rounds_and_not_the_ratio_of_medians() -> None:
    # The machine was five times slower in the last round, for both.
    results = _results((100, 40), (100, 50), (20, 4))
    assert results.ratios(_TARGET) == [2.5, 2.0, 5.0]
    assert list(verdicts(results, [_TARGET])) == [(_TARGET, 2.5)]


def test_round_without_the_reference_is_not_judged() -> None:
    results = _results((100, 50))
    results.add(1, _JOB, "ours", Figures(1.0, 1.0, 1.0, 1.0))
    assert results.ratios(_TARGET) == [2.0]
    assert not list(verdicts(results, [Target(_JOB.name, "ours", 1.0, "absent")]))


def test_table_shows_median_and_extremes_of_the_rounds() -> None:
    (line,) = [line for line in tables(_results((100, 1), (300, 1), (200, 1)), [_JOB], ["ours"]) if "ours" in line]
    assert line.split() == ["ours", "200", "100", "300", "1", "10", "20", "30"]


def test_missed_target_says_by_how_much() -> None:
    results = Results()
    results.add(0, _JOB, "controllerd", Figures(30.0, 1.0, 1.0, 1.0))
    results.add(0, _JOB, "qemu-nbd", Figures(40.0, 1.0, 1.0, 1.0))
    (line,) = verdict_lines(results)
    assert "MISSED" in line
    assert "0.75 x qemu-nbd" in line


def test_of_a_time_less_is_better() -> None:
    target = Target(_JOB.name, "ours", 1.0, "theirs", "p50_us")
    results = Results()
    results.add(0, _JOB, "ours", Figures(1.0, 30.0, 1.0, 1.0))
    results.add(0, _JOB, "theirs", Figures(1.0, 40.0, 1.0, 1.0))
    ((_, ratio),) = verdicts(results, [target])
    assert ratio == 0.75
    assert target.met(ratio)
    assert not target.met(1.01)


def test_history_has_one_line_a_run(tmp_path: Path) -> None:
    path = tmp_path / "history" / "runs.jsonl"
    for commit in ("one", "two"):
        append_history(path, _results((100, 50), (110, 50)), {"commit": commit})
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["commit"], second["commit"]) == ("one", "two")
    assert first["iops"] == {_JOB.name: {"ours": 105, "theirs": 50}}


def test_document_keeps_every_figure() -> None:
    document = json.loads(json.dumps(as_document(_results((100, 50)), {"commit": "x"})))
    assert document["about"] == {"commit": "x"}
    assert document["rounds"][0][_JOB.name]["ours"]["iops"] == pytest.approx(100)
