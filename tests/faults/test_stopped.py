"""Each daemon in turn stands still (SIGSTOP) and goes on: hosts go on, nothing is lost, pairs say so (I7, I14)."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.recorder import Recorder
from tests.faults.topology import GROUPS, SETTINGS, cascade, take_over_in_turn, wait_until_b_has_all
from tests.integration.harness import Site, reported

STOPPED_S = 4.0


@pytest.mark.parametrize("policy", ["suspend", "block"])
@pytest.mark.parametrize("victim", ["C", "A", "B"])
def test_a_daemon_that_stands_still_holds_nobody_for_long(victim: str, policy: str) -> None:
    recorder = Recorder(GROUPS, seed=1)
    recorder.history.hold_bound_s = 3.0
    with Site(["C", "A", "B"], SETTINGS) as site, reported(site, victim=victim, policy=policy):
        site.start()
        cascade(site, recorder, sync_timeout_s=1, on_sync_loss=policy)
        recorder.work(site["C"], steps=20)
        pid = site[victim].pid
        recorder.fault("F33 standstill", stalls=victim)
        os.kill(pid, signal.SIGSTOP)
        try:
            recorder.work(site["C"], steps=60, limit_s=STOPPED_S)
            time.sleep(0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
        recorder.fault_over("F33 standstill")
        recorder.work(site["C"], steps=20)
        for name in ("C", "A", "B"):
            recorder.status(site[name])
        wait_until_b_has_all(site)
        take_over_in_turn(site, recorder)
    recorder.judge()
