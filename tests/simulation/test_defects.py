"""The list of planted defects fits the source, and a few that are found quickly are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.defects.listing import DEFECTS
from tests.simulation.defects.plant import ROOT, Defect, DoesNotFit, Edit, check_fits
from tests.simulation.defects.pursuit import Hunt, Limits, Results, pursue, table

QUICK = {
    "no journal sync": "storage",
    "flush answered at once": "storage",
    "checkpoint without syncing the disks": "storage",
    "acknowledge C's host before A has the write": "swarm",
    "numbers are skipped in sequence mode": "swarm",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_defect_fits_the_source(defect: Defect) -> None:
    check_fits(defect)


def test_there_are_enough_and_each_has_its_name() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 40


@pytest.mark.slow
@pytest.mark.parametrize(
    "defect", [defect for defect in DEFECTS if defect.name in QUICK], ids=lambda defect: defect.name
)
def test_quick_ones_are_caught(defect: Defect, tmp_path: Path) -> None:
    results = Results(DEFECTS)
    catch = pursue(defect, tmp_path, Limits(seeds=20, swarm=20, hunter_s=250), results, (QUICK[defect.name],))
    assert catch is not None, table([defect], results)
    assert not any(tmp_path.iterdir())


def test_hunters_of_tests_are_there() -> None:
    paths = {other.removeprefix("unit:") for each in DEFECTS for other in each.others if other.startswith("unit:")}
    assert [path for path in paths if not (ROOT / path.partition("::")[0]).exists()] == []


def test_each_defect_has_a_hunter_that_may_see_it() -> None:
    assert [defect.name for defect in DEFECTS if not defect.hunters] == []


def _defect(name: str, new: str = "a = 2", unseen: str = "") -> Defect:
    return Defect(name, "I1", ("storage", "unit:tests/unit"), (Edit("file.py", "a = 1", new),), unseen)


def test_results_are_kept_and_not_hunted_again(tmp_path: Path) -> None:
    path = tmp_path / "results"
    seen, other, changed = _defect("seen"), _defect("other", unseen="rot"), _defect("changed")
    results = Results([seen, other, changed], path)
    results.add(Hunt("seen", seen.digest, "swarm", 40, "", 8.0))
    results.add(Hunt("seen", seen.digest, "swarm", 43, "I4: lost", 9.0))
    results.add(Hunt("other", other.digest, "storage", 5, "I9 | wrong", 1.0))
    results.add(Hunt("changed", changed.digest, "swarm", 1, "I4: lost", 1.0))

    changed = _defect("changed", new="a = 3")
    again = Results([seen, other, changed], path)
    limits = Limits(seeds=0, swarm=0, hunter_s=1)
    assert pursue(seen, tmp_path / "trees", limits, again) == again.of(seen, "swarm")
    assert pursue(other, tmp_path / "trees", limits, again) == again.of(other, "storage")
    assert not (tmp_path / "trees").exists()
    assert table([seen, other, changed], again).splitlines()[2:] == [
        "| seen | I1 | 43 |  |  | 9 | I4: lost |",
        "| other | I1 | rot | storage | 5 | 1 | I9 / wrong |",
        "| changed | I1 | > 0 | **NOT CAUGHT** |  | 0 |  |",
        "",
        "2 of 3 caught, 1 of them by the swarm",
    ]


def test_hunt_ends_when_the_time_is_up() -> None:
    limits = Limits(seeds=10, swarm=20, hunter_s=5)
    assert limits.allow(Hunt("seen", "", "swarm", 19, "", 4.9))
    assert not limits.allow(Hunt("seen", "", "swarm", 20, "", 4.9))
    assert not limits.allow(Hunt("seen", "", "swarm", 19, "", 5.0))
    assert not Limits(10, 20, 5, end_s=0.0).allow(Hunt("seen", "", "swarm"))


def test_edit_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text("a = 1\na = 1\n")
    for old in ("b = 1", "a = 1"):
        with pytest.raises(DoesNotFit):
            check_fits(Defect("defect", "I1", ("storage",), (Edit("file.py", old, "a = 2"),)), tmp_path)
