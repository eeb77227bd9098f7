"""Plans: what one seed means. All that a run does by chance or design is drawn here, or from streams named here.

Owns: drawing topology, sizes, settings, hosts, faults and orders from a seed, and leaving parts out
of a plan (for shrinking) without changing the others.
Never: runs anything.

Every part has a random stream of its own, named by what it is, so that a plan with a fault or a
write less is otherwise the same plan.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from controllerd.model.write_time import Source

KIB = 1 << 10
MAX_WRITE = 8 * KIB
SEGMENT = 96 * KIB

Mode = Literal["async", "sync"]
Fence = Literal["suspend", "block"]


def plan_stream(seed: int, *names: object) -> random.Random:
    """Return the random stream that belongs to ``names`` in the plan of ``seed``."""
    return random.Random(f"{seed} {' '.join(map(str, names))}")


@dataclass(frozen=True, slots=True)
class Leg:
    """A pair of one group. ``fence``: on_sync_loss of a synchronous leg."""

    group: str
    primary: str
    secondary: str
    mode: Mode
    fence: Fence


@dataclass(frozen=True, slots=True)
class HostPlan:
    """One host: ``steps`` passes of writes, flushes and reads on ``group``. ``carries``: gives its writes times."""

    name: str
    group: str
    steps: int
    carries: bool
    pause_s: float


@dataclass(frozen=True, slots=True)
class Happening:
    """A fault or order of class ``kind`` at ``at`` seconds; ``number`` names it and its random stream."""

    number: int
    kind: str
    at: float


@dataclass(frozen=True, slots=True)
class Plan:
    """All of one run. Sizes in bytes, times in seconds."""

    seed: int
    topology: str
    sites: tuple[str, ...]
    chains: dict[str, tuple[str, ...]]
    """Group -> the sites it goes through, hosts' first."""
    legs: tuple[Leg, ...]
    volumes: dict[str, dict[str, int]]
    time_source: Source
    order: Literal["time", "sequence"]
    durability: Literal["cache", "stable"]
    storage: dict[str, Any]
    replication: dict[str, Any]
    skews_s: dict[str, tuple[float, float]]
    disk_misses: float
    disk_slow_s: float
    frame_bytes: int
    chaos_s: float
    hosts: tuple[HostPlan, ...]
    faults: tuple[Happening, ...]
    orders: tuple[Happening, ...]

    def stream(self, *names: object) -> random.Random:
        """Return the random stream of a part."""
        return plan_stream(self.seed, *names)

    def without(self, faults: set[int], orders: set[int], steps: int | None) -> Plan:
        """Return the plan without some faults and orders, and with at most ``steps`` steps of each host."""
        hosts = self.hosts
        if steps is not None:
            hosts = tuple(dataclasses.replace(host, steps=min(host.steps, steps)) for host in hosts)
        return dataclasses.replace(
            self,
            hosts=hosts,
            faults=tuple(fault for fault in self.faults if fault.number not in faults),
            orders=tuple(order for order in self.orders if order.number not in orders),
        )


@dataclass(slots=True)
class _Draft:
    """The topology part of a plan."""

    name: str
    sites: list[str] = field(default_factory=list)
    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)


RARE: Final = 100
"""Numbers of rare faults and orders begin here."""

Kinds = tuple[tuple[str, float], ...]


def draw(seed: int, kinds: Kinds, order_kinds: Kinds, rare: Kinds = (), rare_orders: Kinds = ()) -> Plan:
    """Draw the plan of ``seed``. ``kinds``, ``order_kinds``: names of faults and orders with their weights.

    ``rare``, ``rare_orders``: names, and the share of seeds that have one. Each has a stream and a number of
    its own, so that a new one at the end of the list leaves everything else as it is in all seeds.
    """
    rng = random.Random(seed)
    draft = _draw_topology(rng)
    fence: Fence = rng.choice(("suspend", "suspend", "block"))
    legs = tuple(
        Leg(group, chain[step], chain[step + 1], _mode(chain, step), fence)
        for group, chain in draft.chains.items()
        for step in range(len(chain) - 1)
    )
    block = rng.choice((8, 16, 32)) * KIB
    volumes = {group: {f"{group}v{number}": block for number in range(rng.choice((1, 1, 2)))} for group in draft.chains}
    time_source: Source = rng.choice(("clock", "clock", "host", "sequence"))
    chaos_s = rng.choice((2.0, 4.0, 7.0))
    count = rng.randint(2, 4)
    groups = sorted(draft.chains)
    hosts = tuple(
        HostPlan(
            f"h{number}",
            groups[number % len(groups)],
            rng.randint(80, 130) // count,
            time_source == "host" and rng.random() < 0.6,
            rng.choice((0.002, 0.02, 0.05)),
        )
        for number in range(max(count, len(groups)))
    )
    return Plan(
        seed=seed,
        topology=draft.name,
        sites=tuple(draft.sites),
        chains=draft.chains,
        legs=legs,
        volumes=volumes,
        time_source=time_source,
        order=rng.choice(("time", "sequence")),
        durability=rng.choice(("cache", "cache", "stable")),
        storage=_draw_storage(rng),
        replication=_draw_replication(rng),
        skews_s={
            site: (rng.choice((0.0, 0.0, -5.0, 5.0, 3600.0)), rng.choice((0.0, 1e-4, -1e-4))) for site in draft.sites
        },
        disk_misses=rng.choice((0.0, 0.0, 0.2)),
        disk_slow_s=rng.choice((0.0, 0.002, 0.05)),
        frame_bytes=rng.choice((1 * KIB, 8 * KIB, 16 * KIB)),
        chaos_s=chaos_s,
        hosts=hosts,
        faults=_draw_happenings(rng, kinds, rng.choice((0, 1, 2, 4, 8)), chaos_s) + _draw_rare(seed, rare, chaos_s),
        orders=_draw_happenings(rng, order_kinds, rng.choice((0, 0, 1, 1, 2)), chaos_s)
        + _draw_rare(seed, rare_orders, chaos_s),
    )


def _draw_topology(rng: random.Random) -> _Draft:
    name = rng.choice(("async", "async", "sync", "cascade", "cascade", "several C"))
    groups = [f"g{number}" for number in range(rng.choice((1, 2, 2, 3)))]
    if name == "async":
        return _Draft(name, ["A", "B"], dict.fromkeys(groups, ("A", "B")))
    if name == "sync":
        return _Draft(name, ["C", "A"], dict.fromkeys(groups, ("C", "A")))
    if name == "cascade":
        return _Draft(name, ["C", "A", "B"], dict.fromkeys(groups, ("C", "A", "B")))
    return _Draft(name, ["C", "D", "A", "B"], {"g0": ("C", "A", "B"), "g1": ("D", "A", "B")})


def _mode(chain: tuple[str, ...], step: int) -> Mode:
    return "sync" if chain[step + 1] == "A" else "async"


def _draw_storage(rng: random.Random) -> dict[str, Any]:
    segments = rng.choice((4, 6, 12))
    return {
        "cache_bytes": rng.choice((48, 128, 1024)) * KIB,
        "journal_bytes": segments * SEGMENT,
        "segment_bytes": SEGMENT,
        "tail_bytes": rng.choice((8, 64)) * KIB,
        "pending_bytes": rng.choice((8, 64)) * KIB,
        "region_bytes": rng.choice((4, 8)) * KIB,
        "checkpoint_interval_s": rng.choice((0.7, 3.0)),
        "destage_age_s": rng.choice((0.1, 0.7)),
        "max_request_bytes": 2 * MAX_WRITE,
    }


def _draw_replication(rng: random.Random) -> dict[str, Any]:
    return {
        "tick_interval_s": rng.choice((0.05, 0.1)),
        "heartbeat_interval_s": rng.choice((0.2, 0.4)),
        "peer_timeout_s": rng.choice((1.0, 3.0)),
        "handshake_timeout_s": rng.choice((1.0, 5.0)),
        "window_bytes": rng.choice((16, 64, 512)) * KIB,
        "connections": rng.choice((1, 2, 3)),
        "gap_timeout_s": rng.choice((0.5, 2.0)),
        "backoff_max_s": rng.choice((0.3, 2.0)),
        "fence_backoff_max_s": 2.0,
        "sync_timeout_s": rng.choice((1.0, 3.0)),
        "throttle_timeout_s": 2.0,
        "mirror_sync_interval_s": rng.choice((0.02, 0.2)),
        "slice_records": rng.choice((4, 64)),
    }


def _draw_happenings(rng: random.Random, kinds: Kinds, count: int, chaos_s: float) -> tuple[Happening, ...]:
    if not kinds:
        return ()
    # Each seed takes its own subset: what is left out cannot hide what the others do (swarm testing).
    chosen = [kind for kind in kinds if rng.random() < 0.5] or [rng.choice(kinds)]
    names, weights = zip(*chosen, strict=True)
    drawn = sorted((rng.random() * chaos_s, rng.choices(names, weights)[0]) for _ in range(count))
    return tuple(Happening(number, kind, at) for number, (at, kind) in enumerate(drawn))


def _draw_rare(seed: int, kinds: Kinds, chaos_s: float) -> tuple[Happening, ...]:
    drawn = []
    for number, (kind, share) in enumerate(kinds, RARE):
        rng = plan_stream(seed, "rare", kind)
        if rng.random() < share:
            drawn.append(Happening(number, kind, rng.random() * chaos_s))
    return tuple(drawn)
