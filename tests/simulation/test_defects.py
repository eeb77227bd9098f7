"""The list of planted defects fits the source, and a few that are found quickly are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.defects.__main__ import Limits, pursue, table
from tests.simulation.defects.listing import DEFECTS
from tests.simulation.defects.plant import Defect, DoesNotFit, Edit, check_fits

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
    hunter = QUICK[defect.name]
    catch = pursue(defect, tmp_path, Limits(seeds=20, swarm=20, timeout_s=250), (hunter,))
    assert catch.hunter == hunter, table([catch])


def test_edit_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text("a = 1\na = 1\n")
    for old in ("b = 1", "a = 1"):
        with pytest.raises(DoesNotFit):
            check_fits(Defect("defect", "I1", ("storage",), (Edit("file.py", old, "a = 2"),)), tmp_path)
