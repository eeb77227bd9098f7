"""The planner behind a mirror that lost its power: whatever it lost and got again, hosts knew the image.

The history is a list of writes in the order in which hosts made them; each may depend on all before it. The disk
of each group kept a beginning of its writes. The others come again with later times, in any order over the
groups, between DOUBT and SURE; hosts go on writing meanwhile, behind what comes again in their group.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.apply_plan import ApplyDomain, Mode, Order
from controllerd.model.records import Kind

CASES: tuple[tuple[Mode, Order], ...] = (
    ("time", "time"), ("time", "sequence"), ("sequence", "time"), ("sequence", "sequence"),
)  # fmt: skip


@dataclass(frozen=True)
class Journaled:
    """A record in the mirror's journal; ``write``: its place in the order of the hosts, None: silent."""

    time: int
    kind: Kind
    write: int | None


class Mirror:
    """Journals of ``groups`` groups over ``losses`` power losses."""

    def __init__(self, rng: random.Random, mode: Mode, groups: int, losses: int) -> None:
        self.rng = rng
        self.step = 1 if mode == "sequence" else 0
        self.jump = 1000 if mode == "sequence" else 0
        self.last = self.written = 0
        self.journals: list[list[Journaled]] = [[] for _ in range(groups)]
        for _ in range(losses):
            for _ in range(rng.randint(0, 12)):
                self.write(rng.randrange(groups))
            self.lose_power()
        for journal in self.journals:  # everybody gets past everything
            self.add(journal, Kind.TICK)
        for journal in self.journals:
            self.add(journal, Kind.TICK, ahead=1)
        for journal in self.journals:
            self.add(journal, Kind.TICK)

    def add(self, journal: list[Journaled], kind: Kind, write: int | None = None, ahead: int = 0) -> None:
        self.last += self.step or self.rng.randint(ahead, 2)
        journal.append(Journaled(self.last, kind, write))

    def write(self, group: int) -> None:
        self.add(self.journals[group], Kind.WRITE, self.written)
        self.written += 1

    def lose_power(self) -> None:
        lost: list[list[int]] = []
        for journal in self.journals:
            # What was synced is kept: what was there when the power came back is.
            least = max((n + 1 for n, record in enumerate(journal) if record.kind is not Kind.WRITE), default=0)
            kept = self.rng.randint(least, len(journal))
            lost.append([record.write for record in journal[kept:] if record.write is not None])
            del journal[kept:]
        self.last = self.jump + max((journal[-1].time for journal in self.journals if journal), default=0)
        for journal in self.journals:
            self.add(journal, Kind.DOUBT)
        waiting = list(range(len(self.journals)))
        while waiting:
            group = self.rng.choice(waiting)
            if lost[group]:
                self.add(self.journals[group], Kind.WRITE, lost[group].pop(0))
            elif self.rng.random() < 0.5:
                self.write(group)
            else:
                self.add(self.journals[group], Kind.SURE)
                waiting.remove(group)


def domain_of(mirror: Mirror, mode: Mode, order: Order, applied: list[int]) -> ApplyDomain:
    domain = ApplyDomain(mode, order)
    for group, journal in enumerate(mirror.journals):
        domain.add_group(str(group), applied[group], journal[applied[group] - 1].time if applied[group] else 0)
    return domain


def feed(domain: ApplyDomain, mirror: Mirror, group: int, arrived: list[int], count: int) -> None:
    begin, end = arrived[group], min(arrived[group] + count, len(mirror.journals[group]))
    records = enumerate(mirror.journals[group][begin:end], begin + 1)
    domain.arrive_many(str(group), [(record.time, seq, int(record.kind)) for seq, record in records])
    arrived[group] = end


def assert_known_to_hosts(mirror: Mirror, applied: list[int]) -> None:
    shown = [
        record.write
        for journal, through in zip(mirror.journals, applied, strict=True)
        for record in journal[:through]
        if record.write is not None
    ]
    assert sorted(shown) == list(range(len(shown)))


@pytest.mark.parametrize(("mode", "order"), CASES)
@given(seed=st.integers(0, 1 << 32), groups=st.integers(1, 3), losses=st.integers(1, 2))
def test_no_cut_lies_in_what_a_mirror_lost_and_got_again(
    mode: Mode, order: Order, seed: int, groups: int, losses: int
) -> None:
    rng = random.Random(seed)
    mirror = Mirror(rng, mode, groups, losses)
    arrived, applied = [0] * groups, [0] * groups
    domain = domain_of(mirror, mode, order, applied)
    while any(arrived[group] < len(mirror.journals[group]) for group in range(groups)):
        feed(domain, mirror, rng.randrange(groups), arrived, rng.randint(1, 4))
        final = domain.final_plan()
        assert_known_to_hosts(mirror, [final.cut_seqs[str(group)] for group in range(groups)])
        for name, through in domain.plan(rng.randint(1, 5)):
            applied[int(name)] = through
        domain.confirm()
        assert_known_to_hosts(mirror, applied)
    while steps := domain.plan(rng.randint(1, 5)):
        for name, through in steps:
            applied[int(name)] = through
        domain.confirm()
        assert_known_to_hosts(mirror, applied)
    shown = sum(record.write is not None for n, j in enumerate(mirror.journals) for record in j[: applied[n]])
    assert shown == mirror.written


@pytest.mark.parametrize("order", ["time", "sequence"])
def test_number_that_is_needed_lets_the_rest_be_shown(order: Order) -> None:
    domain = ApplyDomain("sequence", order)
    domain.add_group("a", 0)
    domain.add_group("b", 0)
    domain.arrive_many("a", [(1, 1, Kind.WRITE), (4, 2, Kind.WRITE)])
    domain.arrive_many("b", [(2, 1, Kind.WRITE), (10, 2, Kind.DOUBT), (11, 3, Kind.WRITE), (12, 4, Kind.SURE)])
    assert domain.plan(10) == [("a", 1), ("b", 1)]
    domain.confirm()
    assert domain.plan(10) == []
    assert domain.needed_number() == 11
    assert domain.doubt_waits_for("a")
    assert not domain.doubt_waits_for("b")
    domain.arrive("a", 3, 13, Kind.TICK)
    assert {name for name, _ in domain.plan(1)} == {"a", "b"}
    domain.confirm()
    assert domain.position("a").applied_seq >= 2
    assert domain.position("b").applied_seq >= 3
