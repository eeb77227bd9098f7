"""What happens while a controller waits to be killed at a step: load, restarts, orders, pairs, takeovers.

Owns: the scenarios that `tests.faults.steps` names; each arms the board when everything is ready for its steps.
Never: chooses steps, or judges more than that all copies are equal (`Play.settle`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tests.faults.play import BULK, BULK_BYTES, Kill, Play
from tests.faults.stepped import Step
from tests.faults.topology import GROUPS, LEGS, make_groups, pair_all, take_over_in_turn
from tests.integration.harness import Controller, create_pair, wait_until_applied


def _chain(play: Play, **options: object) -> None:
    """The groups, paired along the chain, and a volume for bulk in g2."""
    for controller in play.site.controllers.values():
        make_groups(controller)
        volume = {"name": BULK, "size": BULK_BYTES, "pool": "pool", "group": "g2"}
        controller.post("/v1/volumes", volume)
    pair_all(play.site, play.recorder, **options)
    play.work(play.first)


def _duo(play: Play) -> None:
    """C with an asynchronous copy at A."""
    c, a = play.site["C"], play.site["A"]
    for controller in (c, a):
        make_groups(controller)
    for group in GROUPS:
        create_pair(c, a, group, mode="async")
    play.recorder.paired("C", "A", list(GROUPS), "async")
    play.work(c)


def load(play: Play) -> None:
    """Hosts write, with flushes and FUA, and fill segments."""
    _chain(play)
    while play.arm():
        for _ in range(3):
            play.work(play.first, steps=20, bulk=True)
            if play.over:
                break
    play.settle(*play.site.controllers)
    take_over_in_turn(play.site, play.recorder)


def orders(play: Play) -> None:
    """Disks, pools, groups and volumes are made, changed and deleted."""
    c = play.site["C"]
    make_groups(c)
    play.work(c)
    play.arm()

    def has(what: str, name: str) -> bool:
        return any(item["name"] == name for item in c.get(f"/v1/{what}"))

    def make(what: str, facts: Mapping[str, object]) -> None:
        play.order(lambda: c.post(f"/v1/{what}", dict(facts)), lambda: has(what, str(facts["name"])))

    make("disks", {"name": "more", "size": 8 << 20})
    make("pools", {"name": "more", "disks": ["more"]})
    make("disks", {"name": "extra", "size": 8 << 20})
    play.order(
        lambda: c.post("/v1/pools/more/disks", {"disk": "extra"}),
        lambda: any("extra" in pool["disks"] for pool in c.get("/v1/pools")),
    )
    make("groups", {"name": "more"})
    make("volumes", {"name": BULK, "size": BULK_BYTES, "pool": "more", "group": "more"})
    play.work(c, steps=5, bulk=True)
    play.order(lambda: c.patch(f"/v1/volumes/{BULK}", {"size": 2 * BULK_BYTES}))
    play.order(lambda: c.put(f"/v1/volumes/{BULK}/allow", {"allow": [{"network": "unix"}]}))
    play.trim(c)
    play.order(lambda: c.delete(f"/v1/volumes/{BULK}"), lambda: not has("volumes", BULK))
    play.order(lambda: c.delete("/v1/groups/more"), lambda: not has("groups", "more"))
    play.settle("C")
    play.crash_again()


def pairs(play: Play) -> None:
    """Pairs are made, suspended and deleted."""
    site = play.site
    for controller in site.controllers.values():
        make_groups(controller)
    play.arm()
    legs = list(itertools.pairwise(site.controllers))
    for primary, secondary in legs:
        for group in GROUPS:
            play.order(partial(create_pair, site[primary], site[secondary], group, **LEGS[primary, secondary]))
        play.recorder.paired(primary, secondary, list(GROUPS), LEGS[primary, secondary]["mode"])
    play.work(play.first)
    play.linger()
    for near, far in legs:
        play.order(partial(site[near].post, f"/v1/pairs/g2/suspend?role=primary&peer={far}", {}))
        play.wait(f"{far} to hear of it", partial(_suspended, site[far], "g2", "secondary"))
    play.recorder.status(play.first)
    for near, role, far in [
        end for leg in legs for end in ((leg[0], "primary", leg[1]), (leg[1], "secondary", leg[0]))
    ]:
        order = f"/v1/pairs/g2?role={role}&peer={far}&force=true"
        play.order(partial(site[near].delete, order), partial(_unpaired, site[near], "g2", role))
    play.settle(*site.controllers, groups=("g1",))


def _suspended(controller: Controller, group: str, role: str) -> bool:
    return any(
        (pair["group"], pair["role"]) == (group, role) and pair["state"] != "PAIR" for pair in controller.pairs()
    )


def _unpaired(controller: Controller, group: str, role: str) -> bool:
    return not any((pair["group"], pair["role"]) == (group, role) for pair in controller.get("/v1/pairs"))


def alone(play: Play) -> None:
    """The synchronous secondary is lost, and the primary goes on alone."""
    c, a = play.site["C"], play.site["A"]
    _chain(play, sync_timeout_s=1, on_sync_loss="suspend")
    play.arm()
    play.lose(a)
    play.work(c)
    play.bring_back(a)
    play.wait("C to have suspended both pairs", lambda: c.states() == {"PSUE"})
    play.settle("C")
    play.crash_again()


def takeover_sync(play: Play) -> None:
    """C is lost, and A, its mirror, takes over."""
    _chain(play)
    play.site["C"].kill()
    play.recorder.crashed(play.site["C"], "disk")
    play.arm()
    a = play.site["A"]
    play.take_over(a, "sync")
    play.recorder.image(a)
    play.settle("A")
    play.crash_again()


def takeover_async(play: Play) -> None:
    """C is lost under load and A takes over; C comes back and is fenced."""
    c, a = play.site["C"], play.site["A"]
    _duo(play)
    if play.victim is a:
        play.arm()
    play.lose(c)
    play.take_over(a, "default")
    play.recorder.image(a)
    play.work(a)
    if play.victim is c:
        play.arm()
    play.bring_back(c)
    play.wait("C to be fenced", lambda: c.states() == {"SSWS"})
    play.linger()
    play.settle("A")
    if play.victim is a:
        play.crash_again()


def farewell(play: Play) -> None:
    """A deletes its side while C is down; C hears of it when it comes back."""
    c, a = play.site["C"], play.site["A"]
    _duo(play)
    wait_until_applied(c, a, GROUPS)
    play.lose(c)
    if play.victim is a:
        play.arm()
    for group in GROUPS:
        order = f"/v1/pairs/{group}?role=secondary&peer=C&force=true"
        play.order(partial(a.delete, order), partial(_unpaired, a, group, "secondary"))
    if play.victim is c:
        play.arm()
    play.bring_back(c)
    play.wait("C to hear that its pairs are gone", lambda: c.states() == {"PSUE"})
    play.linger()
    play.settle("C")


def held(play: Play) -> None:
    """Two groups have lost their journals: one gets it back and is recovered, the other is forgotten."""
    c = play.site["C"]
    make_groups(c)
    c.create_group("lost", {BULK: BULK_BYTES})
    play.work(c, bulk=True)
    play.lose(c)
    journals = c.directory / "data" / "journals"
    kept, lost = (journals / f"{number:06d}" for number in (1, 3))
    aside = [path.rename(c.directory / path.name) for path in (kept, lost)]
    play.start()
    for group in ("g1", "lost"):
        assert c.group(group)["fault"], f"group {group} does without its journal"
    _move(aside[0], kept)
    play.arm()
    play.order(lambda: c.post("/v1/groups/g1/recover", {}), lambda: not c.group("g1")["fault"])
    play.order(lambda: c.post("/v1/groups/lost/forget", {}), lambda: len(c.get("/v1/groups")) == len(GROUPS))
    play.settle("C")
    play.crash_again()


def _move(path: Path, place: Path) -> None:
    place.rmdir()
    path.rename(place)


class Scenario(NamedTuple):
    """``sites``: controllers that run; ``first``: the kill before each other one; ``many``: it takes several."""

    act: Callable[[Play], None]
    sites: str = "CA"
    first: Kill | None = None
    many: bool = False


_WHILE_WRITING: Final = Kill(Step("storage.journal:Journal.append", "after"), 8)
_WHILE_TAKING_OVER: Final = Kill(Step("replication.takeover:Takeover._apply", "before"))

SCENARIOS: Final[Mapping[tuple[str, str], Scenario]] = {
    ("load", "C"): Scenario(load, many=True),
    ("load", "A"): Scenario(load, "CAB", many=True),
    ("load", "B"): Scenario(load, "AB", many=True),
    ("fresh", "C"): Scenario(load),
    ("restart", "C"): Scenario(load, "CA", _WHILE_WRITING, many=True),
    ("restart", "A"): Scenario(load, "CAB", _WHILE_WRITING, many=True),
    ("restart", "B"): Scenario(load, "AB", _WHILE_WRITING, many=True),
    ("orders", "C"): Scenario(orders, "C"),
    ("pairs", "C"): Scenario(pairs),
    ("pairs", "A"): Scenario(pairs),
    ("pairs", "B"): Scenario(pairs, "AB"),
    ("alone", "C"): Scenario(alone),
    ("takeover-sync", "A"): Scenario(takeover_sync),
    ("takeover-async", "A"): Scenario(takeover_async),
    ("takeover-async", "C"): Scenario(takeover_async),
    ("takeover-again", "A"): Scenario(takeover_async, "CA", _WHILE_TAKING_OVER),
    ("farewell", "A"): Scenario(farewell),
    ("farewell", "C"): Scenario(farewell),
    ("held", "C"): Scenario(held, "C"),
}
"""As in `tests.faults.steps.REACHED`."""
