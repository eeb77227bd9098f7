"""The world of one seed: sites, network, hosts, faults, operators, and what was seen.

Owns: the phases (build, chaos, heal, quiesce, compare), the history, the marks, and what must hold
at the end without looking into the history: nothing crashed inside, all converged, copies equal.
Never: judges the history; `tests.simulation.checker` does.

Source: invariants page, "Simulator: recommended design"; I19.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from controllerd.model import write_time
from controllerd.model.errors import RemoteCopyError
from controllerd.model.pair_state import PairState, Role
from controllerd.replication import sender
from controllerd.replication.pair_record import PairSpec, PairVolume
from controllerd.storage import journal, journal_ranges
from controllerd.storage.settings import StorageSettings
from tests.simulation import faults, orders
from tests.simulation import history as h
from tests.simulation.checker.journal_tap import Tap
from tests.simulation.clocks import EPOCH_NS, SiteClock
from tests.simulation.disk import Loss
from tests.simulation.machine import Site
from tests.simulation.network import Network, Path, WorldLoop
from tests.simulation.plan import MAX_WRITE, Leg, Plan
from tests.simulation.storage_machine import DATA
from tests.simulation.workload import Host, read_volume

LOOK_S: Final = 0.5
QUIET_BOUND_S: Final = 60.0
DAMAGE_SETTLES_S: Final = 15.0
"""By then all sites know what damage at rest means for their pairs."""
RECORD_ROOM: Final = 1024
SHARED: Final = 64 << 10
"""Bytes that may share a write time, beside journals of four small segments."""


@dataclass
class Outcome:
    """What one run came to. ``problems``: what must not be; ``hash``: equal for equal runs."""

    plan: Plan
    history: h.History
    problems: list[str] = field(default_factory=list)
    marks: Counter[str] = field(default_factory=Counter)
    hash: str = ""
    writes: int = 0
    simulated_s: float = 0.0
    faults: int = 0


class World:
    """One run of ``plan``."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = WorldLoop(self._bug)
        self.network = self.loop.network = Network(self.loop, plan.stream("network"), self.trace, self.reached)
        self.marks: Counter[str] = Counter()
        self.problems: list[str] = []
        self.history = h.History.make(
            plan.seed % (1 << 32),
            plan.volumes,
            domains=[h.Domain(plan.time_source, plan.order, tuple(sorted(plan.chains)))],
            stable=plan.durability == "stable",
            prompt=True,
        )
        self.sites = {name: self._make_site(name) for name in plan.sites}
        self.writer_of = {group: chain[0] for group, chain in plan.chains.items()}
        self.hosts_held = False
        self.taking_over = asyncio.Lock()
        self.quiet = False
        self.hosts: list[Host] = []
        self._serial = self._request = self._fault_count = 0
        self._trace = 0
        self._suspended_alone = False
        self._host_tick_ns = plan.stream("host clock").choice((5_000_000, 5_000_000, 1_000_000_000))
        self._active: Counter[str] = Counter()
        self._damaged: set[tuple[str, str]] = set()

    # ---- for all who act in it --------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Virtual seconds since the beginning."""
        return self.loop.now_s

    def note(self, event: h.Event) -> None:
        """Add to the history."""
        self.history.events.append(event)

    def trace(self, *facts: object) -> None:
        """Add to the hash that says whether two runs were the same."""
        self._trace = zlib.crc32(repr((self.loop.now_s, facts)).encode(), self._trace)

    def reached(self, mark: str) -> None:
        """Count something that the swarm has to reach."""
        self.marks[mark] += 1

    def next_serial(self) -> int:
        """Return the number of the next write."""
        self._serial += 1
        return self._serial

    def next_request(self) -> int:
        """Return the number of the next flush, read or order."""
        self._request += 1
        return self._request

    def damage(self, site: str, group: str = "") -> None:
        """The journal of a group at a site was damaged for good, or the site's catalogue (``group`` "")."""
        self._damaged.add((site, group))

    def host_clock(self) -> int:
        """What the hosts' clock shows, in ns; it is coarse."""
        return EPOCH_NS + int(self.loop.now_s * 1e9) // self._host_tick_ns * self._host_tick_ns

    def identity(self, leg: Leg) -> str:
        """The id of a leg's pair."""
        return f"{leg.primary}:{leg.group}-{leg.secondary}:{leg.group}"

    def upstream(self, group: str, site: str) -> tuple[str, ...]:
        """The sites before ``site`` on the way of a group."""
        chain = self.plan.chains[group]
        return chain[: chain.index(site)]

    def cut_off_hosts(self) -> None:
        """All hosts lose their connections, but those that stay where they are."""
        for host in self.hosts:
            if host.stays_at is None:
                host.cut_off()

    def _bug(self, where: str, error: BaseException) -> None:
        self.problems.append(f"unhandled: at {where}: {error!r}")

    # ---- sites -----------------------------------------------------------------------------

    def _make_site(self, name: str) -> Site:
        plan = self.plan
        skew_s, drift = plan.skews_s[name]
        settings = StorageSettings(
            DATA, time_source=plan.time_source, durability=plan.durability, **plan.storage
        )  # fmt: skip
        site = Site(
            name,
            self.loop,
            plan.stream("site", name),
            SiteClock(self.loop.time, skew_s, drift),
            settings,
            {**plan.replication, "order": plan.order},
            self._reported,
            [other for other in plan.sites if other != name],
        )
        site.disk.misses = plan.disk_misses
        site.disk.sync_seconds = plan.disk_slow_s
        site.disk.on_write = lambda path, data: self._tap(site, path, data, Tap.note)
        site.disk.on_synced = lambda path, data: self._tap(site, path, data, Tap.synced)
        site.on_serving = lambda: self._serving(site)
        site.on_ended = lambda how: self._ended(site, how)
        return site

    def _tap(self, site: Site, path: str, data: bytes, note: Callable[[Tap, float, bytes], None]) -> None:
        """Read along what goes to journals, and becomes durable there."""
        if "/journals/" not in path:
            return
        number = int(path.rsplit("/", 2)[1])
        for group in site.storage.groups.values():
            if group.facts.group_id == number:
                names = {key: volume.name for key, volume in group.volumes.items()}
                note(Tap(self.history, site.name, group.name, names), self.now_s, data)

    def _serving(self, site: Site) -> None:
        if site.serving:
            self.note(h.Restarted(self.now_s, site.name))
            self._look_at(site)

    def _ended(self, site: Site, how: str) -> None:
        self.note(h.Crashed(self.now_s, site.name, "power" if how == "power" else "stop" if how == "stop" else "kill"))
        self.trace(site.name, how)
        for host in self.hosts:
            if host.connected_to is site:
                host.cut_off()

    def _reported(self, site: str, event: str, facts: dict[str, object]) -> None:
        self.trace(site, event)
        if event == "pair-state":
            change = f"{facts['role']} {facts['before']}->{facts['state']}"
            self.reached(change)
            sync = any(leg.mode == "sync" and self.identity(leg) == facts["pair"] for leg in self.plan.legs)
            if sync and facts["before"] == "PAIR" and facts["state"] != "SSWS":
                self._suspended_alone |= "did not confirm" not in str(facts["reason"])
            for fault in self._active:
                self.reached(f"{change} during {fault}")
            self._look_at(self.sites[site])
        elif event == "replication-timer-error":
            self.problems.append(f"unhandled: timer at {site}: {facts['error']}")
        elif event == "start-failed" and facts["kind"] == "Corrupt" and (site, "") in self._damaged:
            self.reached("a damaged catalogue was refused")
        elif event == "start-failed" and facts["kind"] == "Corrupt":
            self.problems.append(f"I20: {site} does not start: {facts['error']}")
        else:
            self.reached(event)

    # ---- phases ----------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Run the plan to its end."""
        with small_pieces(self.plan.frame_bytes):
            asyncio.set_event_loop(None)
            try:
                self.loop.run_until_complete(self._run())
            finally:
                for site in self.sites.values():
                    site.destroy()
                self.loop.close()
        return Outcome(
            self.plan,
            self.history,
            self.problems,
            self.marks,
            f"{self._trace:08x}-{self.loop.turns}-{len(self.history.events)}",
            self._serial,
            self.loop.now_s,
            self._fault_count,
        )

    async def _run(self) -> None:
        self.healing = asyncio.Event()
        await self._build()
        plan = self.plan
        self.hosts = [Host(self, host) for host in plan.hosts]
        start = self.loop.create_task
        hosts = [start(host.run(), name=host.plan.name) for host in self.hosts]
        begun = [
            start(faults.play(self, each.kind, each.number, each.at, self._fault), name=each.kind)
            for each in plan.faults
        ]
        begun += [start(orders.play(self, each.kind, each.number, each.at), name=each.kind) for each in plan.orders]
        looking = start(self._look())
        await asyncio.sleep(plan.chaos_s)
        self.healing.set()
        self._heal()
        await self._until_done("a fault or order", begun)
        self._heal()
        self.quiet = True
        await self._until_done("a host", hosts)
        await self._converge()
        looking.cancel()
        self.note(h.Quiet(self.now_s, 0.0))
        self._divide_domains()
        for site in self.sites.values():
            await self.look(site)
        for leg in self.plan.legs:
            if self._why_waiting(leg) and self._says_damage(leg):
                self.note(h.Held(self.now_s, leg.secondary, leg.group))
        await self._compare()
        self._check_divergence()

    async def _until_done(self, what: str, tasks: list[asyncio.Task[None]]) -> None:
        if not tasks:
            return
        done, pending = await asyncio.wait(tasks, timeout=QUIET_BOUND_S)
        for task in done:
            task.result()
        for task in pending:
            self.problems.append(f"I7: {what} still waits after {QUIET_BOUND_S:g} s: {task.get_name()}")
            task.cancel()

    def _fault(self, kind: str, where: str, stalls: str, begun: bool) -> None:
        name = f"{kind} {where}".strip()
        if begun:
            self._fault_count += 1
            self.reached(kind)
            self._active[kind] += 1
        else:
            self._active -= Counter([kind])
        self.trace(name, begun)
        self.note(h.FaultBegun(self.now_s, name, stalls) if begun else h.FaultEnded(self.now_s, name))

    async def _build(self) -> None:
        for site in self.sites.values():
            site.boot()
        while not all(site.serving for site in self.sites.values()):  # noqa: ASYNC110  # virtual time is free
            await asyncio.sleep(0.01)
        for site in self.sites.values():
            assert site.life is not None
            site.life.call(self._make_volumes, site)
        for leg in sorted(self.plan.legs, key=lambda leg: leg.mode, reverse=True):
            await self._pair(leg)
        if self.problems:
            raise AssertionError(self.problems)

    def _make_volumes(self, site: Site) -> None:
        plan, storage = self.plan, site.storage
        groups = [group for group, chain in plan.chains.items() if site.name in chain]
        size = sum(sum(plan.volumes[group].values()) for group in groups)
        storage.create_disk("d", f"{DATA}/disks/d.img", size + 16 * storage.settings.region_bytes)
        storage.create_pool("p", ["d"])
        for group in groups:
            storage.create_group(group)
            for volume, volume_size in plan.volumes[group].items():
                storage.create_volume(volume, volume_size, pool="p", group=group)

    async def _pair(self, leg: Leg) -> None:
        primary, secondary = self.sites[leg.primary], self.sites[leg.secondary]
        volumes = tuple(
            PairVolume(volume.name, volume.name, volume.key, volume.size)
            for volume in primary.storage.groups[leg.group].volumes.values()
        )
        spec = PairSpec(
            leg.primary, leg.group, leg.secondary, leg.group, volumes, mode=leg.mode, on_sync_loss=leg.fence
        )
        number = self.next_request()
        facts = {"secondary": leg.secondary, "mode": leg.mode, "fence": leg.fence}
        self.note(h.Ordered(self.now_s, number, leg.primary, "pair-create", leg.group, facts))
        assert primary.life is not None
        assert secondary.life is not None
        await secondary.life.perform(secondary.pairs.create(Role.SECONDARY, spec))
        await primary.life.perform(primary.pairs.create(Role.PRIMARY, spec))
        while not primary.pairs.primaries[spec.identity].sender.connected:  # noqa: ASYNC110  # virtual time is free
            await asyncio.sleep(0.05)
        self.note(h.Answered(self.now_s, number))

    def _heal(self) -> None:
        """Everything works from now on."""
        for path in self.network.paths.values():
            good = Path()
            path.blocked, path.rot, path.rate = False, 0.0, None
            path.low_s, path.high_s, path.chunk = good.low_s, good.high_s, good.chunk
        for site in self.sites.values():
            site.disk.fault = None
            site.disk.cut_in = None
            site.disk.sync_seconds = self.plan.disk_slow_s
            site.clock.go()
            site.boot()
        self.network.kick()

    async def _converge(self) -> None:
        """Wait until every pair has all, or says why it has not (I19)."""
        end_s = self.now_s + QUIET_BOUND_S
        settled_s = self.now_s + DAMAGE_SETTLES_S
        waits = ["nobody has looked yet"]
        while waits and self.now_s < end_s:
            self._restart_failed()
            await asyncio.sleep(0.2)
            waits = [
                why
                for leg in self.plan.legs
                if (why := self._why_waiting(leg)) and not (self.now_s > settled_s and self._says_damage(leg))
            ]
        self.problems += [f"I19: not converged after {QUIET_BOUND_S:g} s: {why}" for why in waits]

    def _divide_domains(self) -> None:
        """Once a pair left PAIR its hosts go on alone, and other controllers know nothing of that.

        A synchronous pair that was suspended alone and taken over is as old as that, and says so.
        """
        if self._suspended_alone and (self.marks["takeover"] or self.plan.time_source == "sequence"):
            domain = self.history.domains[0]
            self.history.domains = [
                h.Domain(domain.time_source, domain.order, (group,)) for group in sorted(self.plan.chains)
            ]
        elif any(mark.startswith("primary PAIR->") for mark in self.marks):
            by_primary: dict[str, list[str]] = {}
            for group, chain in sorted(self.plan.chains.items()):
                by_primary.setdefault(chain[0], []).append(group)
            domain = self.history.domains[0]
            self.history.domains = [
                h.Domain(domain.time_source, domain.order, tuple(groups)) for groups in by_primary.values()
            ]

    def _restart_failed(self) -> None:
        """What an operator does with a controller that says that its journal or disk has failed."""
        for site in self.sites.values():
            groups = site.storage.groups.values()
            failed = any(group.journal.failed for group in groups)
            failed |= any(disk.failed for disk in site.storage.disks.values())
            # One that is held because of damage would be held again.
            failed |= any(group.read_error and (site.name, group.name) not in self._damaged for group in groups)
            if site.serving and failed:
                self.reached("restart after a failed disk")
                site.end(Loss.KILL)
                site.boot()

    def _why_waiting(self, leg: Leg) -> str:
        """Why a leg has not come to rest; "" if it has."""
        identity = self.identity(leg)
        primary, secondary = self.sites[leg.primary], self.sites[leg.secondary]
        if not (primary.serving and secondary.serving):
            return f"{identity}: a site is not up"
        near, far = primary.pairs.primaries.get(identity), secondary.pairs.secondaries.get(identity)
        if near is None or far is None:
            return f"{identity}: forgotten at a side"
        states = f"{near.record.state}/{far.record.state}"
        if near.active != far.active:
            return f"{identity}: {states}; {near.record.reason}/{far.record.reason}"
        if far.record.state is PairState.SSWS and near.record.state is not PairState.SSWS:
            return f"{identity}: {states}: the old primary is not fenced"
        if far.record.fence is not None:
            return f"{identity}: {states}: the old primary has not said what it has alone"
        if not near.active:
            if not near.record.reason or not far.record.reason:
                return f"{identity}: {states} without a reason"
            return ""
        last = near.group.last_seq
        if not far.receiver.connected:
            return f"{identity}: no connection: {far.receiver.reason}"
        held = self._held(leg.secondary)
        if far.intake.next_seq <= last and not (held and far.stall):
            return f"{identity}: received {far.intake.next_seq - 1} of {last}, {far.stall}"
        if not held and far.intake.applied_seq < last:
            return f"{identity}: applied {far.intake.applied_seq} of {last}: {far.domain.holder()} {far.domain.fault}"
        return ""

    def _damaged_before(self, leg: Leg) -> set[tuple[str, str]]:
        """What is damaged at rest on the ways to the secondary of a leg, of all groups: they share an apply domain."""
        before = self._before(leg.secondary)
        return {(site, group) for site, group in self._damaged if site in before}

    def _before(self, site: str) -> set[str]:
        """The sites from which anything comes to ``site``, and itself: its groups share an apply domain."""
        primaries = {leg.primary for leg in self.plan.legs if leg.secondary == site}
        return {site}.union(*map(self._before, primaries))

    def _says_damage(self, leg: Leg) -> bool:
        """Whether a leg waits because of damage at rest, its own or another group's, and a site says why it waits."""
        damaged, chain = self._damaged_before(leg), self.plan.chains[leg.group]
        if not damaged or any(site in chain and not group for site, group in damaged):
            return bool(damaged)  # without its catalogue a site does not start
        for name in chain:
            site = self.sites[name]
            said = site.storage.groups[leg.group].broken is not None
            for status in site.pairs.status() if site.serving else ():
                if status.group == leg.group:
                    said |= bool(status.reason or status.holder or (not status.connected and status.link_reason))
            if said:
                self.reached("damage at rest was reported")
                return True
        return False

    def _held(self, site: str) -> bool:
        """Whether a suspended pair, there or before, keeps what arrives at ``site`` from being shown."""
        for pair in self.sites[site].pairs.secondaries.values():
            if pair.record.state is not PairState.SSWS and (not pair.active or self._held(pair.record.peer)):
                return True
        return False

    # ---- looking ---------------------------------------------------------------------------

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            for site in self.sites.values():
                self._look_at(site)
                if (
                    site.serving
                    and site.life is not None
                    and all(group.role is Role.SECONDARY for group in site.storage.groups.values())
                ):
                    site.life.call(self._image, site)

    def _image(self, site: Site) -> None:
        """Note the image of a secondary at this moment, if all of it can be read without waiting."""
        shown = {}
        for name, volume in sorted(site.storage.volumes.items()):
            buffer = bytearray(volume.size)
            try:
                if not volume.read_into(memoryview(buffer), 0):
                    return
            except RemoteCopyError:
                return
            shown[name] = self.history.shown(name, 0, buffer)
        self.note(h.Image(self.now_s, site.name, shown))

    def _look_at(self, site: Site) -> None:
        if site.serving and site.life is not None:
            site.life.call(self._status, site)

    def _status(self, site: Site) -> None:
        for status in site.pairs.status():
            group = site.storage.groups[status.group]
            if group.read_error is not None:
                self.note(h.Held(self.now_s, site.name, group.name))
                continue
            self.note(
                h.Status(
                    self.now_s,
                    site.name,
                    status.group,
                    status.role,
                    status.state,
                    status.peer,
                    status.reason,
                    status.mode,
                    group.generation,
                    status.written.seq,
                    status.arrived.seq,
                    status.durable.seq,
                    status.applied.seq,
                    status.written.time,
                    status.applied.time,
                    status.cut_time,
                    status.lag_s,
                    status.missing_writes,
                )
            )

    async def look(self, site: Site) -> None:
        """Note status and image of a site where nobody writes."""
        self._look_at(site)
        if site.serving and all(volume.visible for volume in site.storage.volumes.values()):
            shown = {}
            for name, volume in sorted(site.storage.volumes.items()):
                data, error = await read_volume(site, volume, 0, volume.size)
                if error and self.quiet and not any(name == site.name for name, _ in self._damaged):
                    self.problems.append(f"I9: {site.name}: reading {name} failed with {error}, and nothing is broken")
                if data is None:
                    return
                shown[name] = self.history.shown(name, 0, data)
            self.note(h.Image(self.now_s, site.name, shown))

    async def _compare(self) -> None:
        """Where all pairs of a domain are in PAIR the copies are equal."""
        for leg in self.plan.legs:
            far = self.sites[leg.secondary].pairs.secondaries.get(self.identity(leg))
            if far is None or not far.active or self._held(leg.secondary):
                continue
            if self._damaged_before(leg) and self._why_waiting(leg):
                continue
            self.reached("compared equal copies")
            for name in self.plan.volumes[leg.group]:
                images = []
                for site in (self.sites[leg.primary], self.sites[leg.secondary]):
                    volume = site.storage.volumes[name]
                    images.append((await read_volume(site, volume, 0, volume.size))[0])
                if None in images and self._damaged_before(leg):
                    continue  # what shares a domain with a damaged group may not be read either
                if images[0] is None or images[0] != images[1]:
                    self.problems.append(f"I19: {self.identity(leg)}: {name} differs after everything has come to rest")

    def _check_divergence(self) -> None:
        """What hosts wrote at an old primary after the takeover is counted, and both sides say so (I13)."""
        taken = {}
        for event in self.history.events:
            match event:
                case h.Ordered(name="takeover", order=number, site=site, facts=facts):
                    taken[number] = site, facts["groups"]
                case h.Answered(order=number, error="") if number in taken:
                    site, groups = taken[number]
                    for group in groups:
                        self._check_fork(group, site, event)

    def _check_fork(self, group: str, site: str, takeover: h.Answered) -> None:
        writer = self.plan.chains[group][0]
        written: set[int] = set()
        alone: set[int] = set()
        for event in self.history.events[self.history.events.index(takeover) :]:
            match event:
                case h.Submitted(serial=serial, site=at, group=of) if (at, of) == (writer, group):
                    written.add(serial)
                case h.Acknowledged(serial=serial) if serial in written:
                    alone.add(serial)
                case h.Crashed(site=at) if at == writer:
                    alone.clear()  # it may have lost them
        if not alone or any(site in self.plan.chains[group] for site, _ in self._damaged):
            return
        self.reached("split brain")
        # In a cascade each site counts what the next one has not.
        chain = self.plan.chains[group]
        legs = [
            leg for leg in self.plan.legs if leg.group == group and leg.secondary in chain[1 : chain.index(site) + 1]
        ]
        for side, pairs in (("primary", "primaries"), ("secondary", "secondaries")):
            told = 0
            for leg in legs:
                record = getattr(self.sites[getattr(leg, side)].pairs, pairs)[self.identity(leg)].record
                writes = (record.diverged or {}).get("writes", 0)
                told += writes if "diverged" in record.reason else 0
            if told < len(alone):
                self.problems.append(
                    f"I13: {writer} acknowledged {len(alone)} writes of {group} after {site} took over;"
                    f" on the {side} side {told} are reported"
                )


@contextlib.contextmanager
def small_pieces(size: int) -> Iterator[None]:
    """Let frames and segments be small enough that they fill, roll and are cut."""
    kept = (journal.PIECE_MAX, journal.READ_BATCH, journal.INDEX_STEP, journal_ranges.TAIL_BATCH, sender.FRAME_BYTES)
    shared = write_time.SHARED_MAX
    journal.PIECE_MAX = 2 * max(size, MAX_WRITE) + MAX_WRITE + RECORD_ROOM  # type: ignore[misc]
    journal.READ_BATCH = journal.INDEX_STEP = journal_ranges.TAIL_BATCH = size  # type: ignore[misc]
    sender.FRAME_BYTES = size  # type: ignore[misc]
    write_time.SHARED_MAX = SHARED  # type: ignore[misc]
    try:
        yield
    finally:
        journal.PIECE_MAX, journal.READ_BATCH, journal.INDEX_STEP = kept[:3]  # type: ignore[misc]
        journal_ranges.TAIL_BATCH, sender.FRAME_BYTES = kept[3:]  # type: ignore[misc]
        write_time.SHARED_MAX = shared  # type: ignore[misc]
