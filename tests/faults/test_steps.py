"""kill -9 at each named step of real controllers, at its k-th pass and again while they come back (F1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest

from tests.faults.matrix import EVERY, WHOLE, WHOLE_LIMIT_S
from tests.faults.play import Kill, Play
from tests.faults.scenarios import SCENARIOS
from tests.faults.stepped import Step, find
from tests.faults.steps import NAMES, REACHED
from tests.faults.topology import SETTINGS
from tests.integration.harness import Site, reported

# Room for what hosts write while a controller comes back.
ROOMY: Final = replace(SETTINGS, journal_bytes="256MiB")
PASSES: Final = tuple(range(1, 9)) if EVERY else (1, 3)
"""Which passes are hit where one run takes many; elsewhere only the first, or with EVERY half of them."""
SAMPLE: Final = (
    ("load", "C", "storage.catalogue:Catalogue.checkpoint"),
    ("restart", "A", "storage.recovery:end_recovery"),
    ("takeover-async", "A", "replication.takeover:Takeover._promote"),
    ("pairs", "B", "storage.journal:Journal.reset"),
)


def cases() -> Iterator[tuple[str, str, list[Kill]]]:
    """Scenario, victim, and what it dies of: one site for all kills at a step where that is possible."""
    for (scenario, victim), names in REACHED.items():
        for name in names:
            steps = [Step(name, "before"), Step(name, "after")]
            if not WHOLE:
                if (scenario, victim, name) in SAMPLE:
                    yield scenario, victim, [Kill(steps[1])]
            elif SCENARIOS[scenario, victim].many:
                yield scenario, victim, [Kill(step, k) for k in PASSES for step in steps]
            else:
                kills = [Kill(step, k) for k in PASSES[: len(PASSES) // 2] for step in steps]
                yield from ((scenario, victim, [kill]) for kill in kills)


CASES: Final = [
    pytest.param(scenario, victim, kills, id=f"{scenario}-{victim}-{kills[0]}") for scenario, victim, kills in cases()
]


def test_every_scenario_has_its_steps() -> None:
    assert SCENARIOS.keys() == REACHED.keys()


@pytest.mark.parametrize("name", NAMES)
def test_step_is_there(name: str) -> None:
    find(name)


@pytest.mark.timeout(WHOLE_LIMIT_S)
@pytest.mark.parametrize(("scenario", "victim", "kills"), CASES)
def test_killed_at_a_step(scenario: str, victim: str, kills: list[Kill]) -> None:
    act, sites, first, _ = SCENARIOS[scenario, victim]
    with Site(sites, ROOMY) as site, reported(site, scenario=scenario, victim=victim, kills=[*map(str, kills)]):
        play = Play(site, victim, kills, first)
        site.start()
        act(play)
    play.recorder.judge()
