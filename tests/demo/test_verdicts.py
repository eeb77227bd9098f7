"""The demonstration's table: its exit code follows from its claims."""

from __future__ import annotations

from deploy.demo.verdicts import Verdicts


def test_one_claim_that_did_not_hold_makes_all_bad() -> None:
    verdicts = Verdicts()
    verdicts.claim("first", "seen", good=True)
    good_before = verdicts.good
    verdicts.claim("second", "not seen", good=False)
    verdicts.figure("third", "5 s")
    assert (good_before, verdicts.good) == (True, False)
    assert sum("BAD" in line for line in verdicts.lines()) == 1


def test_figures_alone_prove_nothing() -> None:
    verdicts = Verdicts()
    verdicts.figure("how long", "5 s")
    assert not verdicts.good
