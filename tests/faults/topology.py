"""The sites of the fault tests: one controller, and the cascade C -(synchronous)- A -(asynchronous)- B.

Owns: making groups and pairs, coming back after a crash, the takeovers at the end.
Never: injects a fault.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from tests.faults.recorder import Recorder
from tests.integration.harness import Controller, Settings, Site, create_pair, position, wait_for

GROUPS = {"g1": {"v1": 64 << 10, "v2": 64 << 10}, "g2": {"v3": 64 << 10}}
LEGS: Final[Mapping[tuple[str, str], dict[str, Any]]] = {
    ("C", "A"): {"mode": "sync", "domain": "sync", "sync_timeout_s": 20, "on_sync_loss": "block"},
    ("A", "B"): {"mode": "async"},
}
"""(primary, secondary): the order that makes the pair."""
SETTINGS = Settings(checkpoint_interval_s=0.2, destage_age_s=0.1, journal_bytes="16MiB", segment_bytes="4MiB")


@contextmanager
def single() -> Iterator[tuple[Site, Controller]]:
    """One controller with the groups, running."""
    with Site(["C"], SETTINGS) as site:
        site.start()
        make_groups(site["C"])
        yield site, site["C"]


def make_groups(controller: Controller) -> None:
    """Make the groups and their volumes."""
    controller.create_pool()
    for group, volumes in GROUPS.items():
        controller.create_group(group, dict(volumes))


def cascade(site: Site, recorder: Recorder, **options: Any) -> None:
    """Make the groups on C, A and B and pair them. ``options``: of the synchronous pair's order."""
    for controller in site.controllers.values():
        make_groups(controller)
    pair_all(site, recorder, **options)


def pair_all(site: Site, recorder: Recorder, **options: Any) -> None:
    """Pair the groups of the controllers that are there, by `LEGS`. ``options``: of the synchronous pair's order."""
    for primary, secondary in itertools.pairwise(site.controllers):
        order = LEGS[primary, secondary]
        for group in GROUPS:
            create_pair(
                site[primary], site[secondary], group, **(order | options if order["mode"] == "sync" else order)
            )
        recorder.paired(primary, secondary, list(GROUPS), order["mode"])


def wait_until_b_has_all(site: Site) -> None:
    """Return when B has all that A has, durably, and shows it.

    Unless the pair of C and A is suspended: then A makes no ticks, because C has writes that A does not know, and the
    last ones may wait at B for a takeover.
    """
    a, b = site["A"], site["B"]
    targets = {group: position(a, "primary", group, "written") for group in GROUPS}

    def reached(group: str) -> bool:
        suspended = any(entry["state"] != "PAIR" for entry in a.pairs() if entry["role"] == "secondary")
        return position(b, "secondary", group, "durable" if suspended else "applied") >= targets[group]

    for group in GROUPS:
        wait_for(f"group {group} of B to have write {targets[group]} of A", partial(reached, group))


def again(recorder: Recorder, controller: Controller) -> None:
    """Start a controller whose process is gone, and look at what it shows."""
    recorder.crashed(controller)
    controller.start()
    controller.wait_ready()
    recorder.restarted(controller)
    recorder.image(controller)


def take_over_in_turn(site: Site, recorder: Recorder) -> None:
    """Lose the first controller and take over at the next, and so on; each shows what it has."""
    recorder.status(next(iter(site.controllers.values())))
    for lost, heir in itertools.pairwise(site.controllers):
        site[lost].kill()
        recorder.crashed(site[lost], "disk")
        recorder.take_over(site[heir], LEGS[lost, heir].get("domain", "default"))
        recorder.image(site[heir])
