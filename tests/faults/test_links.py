"""Partitions, one-way loss and slow links between real controllers in network namespaces (F19, F21-F23)."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.faults.matrix import WHOLE
from tests.faults.namespaces import Network, network
from tests.faults.recorder import Recorder
from tests.faults.topology import GROUPS, SETTINGS, cascade, take_over_in_turn, wait_until_b_has_all
from tests.integration.harness import Site, reported

Fault = Callable[[Network, str, str], None]


def _down(net: Network, near: str, far: str) -> None:
    net.down(near, far)


def _near_is_deaf(net: Network, near: str, far: str) -> None:
    net.deaf(near, far)


def _far_is_deaf(net: Network, near: str, far: str) -> None:
    net.deaf(far, near)


def _slow(net: Network, near: str, far: str) -> None:
    net.slow(near, far)


def _flapping(net: Network, near: str, far: str) -> None:
    for _ in range(10):
        net.down(near, far)
        time.sleep(0.05)
        net.heal()
        time.sleep(0.05)


FAULTS: tuple[Fault, ...] = (_down, _near_is_deaf, _far_is_deaf, _slow, _flapping)
SAMPLE = {("C", "A", _down, "block"), ("A", "B", _far_is_deaf, "block"), ("C", "A", _near_is_deaf, "suspend")}
CASES = [
    (near, far, fault, policy)
    for near, far in (("C", "A"), ("A", "B"))
    for fault in FAULTS
    for policy in ("block", "suspend")
    if WHOLE or (near, far, fault, policy) in SAMPLE
]


@pytest.mark.parametrize(("near", "far", "fault", "policy"), CASES)
def test_link_fails_and_heals(near: str, far: str, fault: Fault, policy: str) -> None:
    recorder = Recorder(GROUPS, seed=1)
    recorder.history.hold_bound_s = 15.0
    with network() as net, Site(["C", "A", "B"], SETTINGS, places=net.places) as site:
        with reported(site, near=near, far=far, fault=fault.__name__, policy=policy):
            site.start()
            cascade(site, recorder, sync_timeout_s=2, on_sync_loss=policy)
            recorder.work(site["C"], steps=15)
            recorder.fault("link")
            fault(net, near, far)
            recorder.work(site["C"], steps=40, limit_s=6)
            recorder.image(site["B"])
            net.heal()
            recorder.fault_over("link")
            recorder.work(site["C"], steps=15, limit_s=20)
            wait_until_b_has_all(site)
            recorder.image(site["B"])
            for name in ("C", "A", "B"):
                recorder.status(site[name])
            take_over_in_turn(site, recorder)
    recorder.judge()
