"""Pairs of this controller: making and deleting them, start-up and stop.

Owns: the orders on pairs, what a group's failure and recovery mean for its pairs, and the transfer port.
Its parts do the rest (takeover_orders.py, timer.py, pair_events.py, requests.py, overview.py,
kept_pairs.py), all over one register of pairs.
Never: moves data; the two sides of a pair (primary.py, secondary.py) do.

Both sides of a pair are created by the same order with the same `PairSpec`, first at the
secondary and then at the primary; every order may be repeated.

Source: spec §7; architecture §6; invariants I13-I16, I19, I20.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controllerd.model.errors import Conflict, RemoteCopyError
from controllerd.model.pair_state import PairEvent, PairState, Role
from controllerd.replication.applier import DomainApplier
from controllerd.replication.checks import check_create
from controllerd.replication.context import Context
from controllerd.replication.farewells import Farewells
from controllerd.replication.kept_pairs import KeptPairs
from controllerd.replication.links import Acceptor
from controllerd.replication.messages import Notice
from controllerd.replication.overview import Overview
from controllerd.replication.pair_events import PairEvents
from controllerd.replication.pair_record import TABLE, PairRecord, PairSpec, read_record
from controllerd.replication.ports import Report
from controllerd.replication.primary import PrimaryPair
from controllerd.replication.register import PairRegister
from controllerd.replication.requests import Requests
from controllerd.replication.secondary import SecondaryPair
from controllerd.replication.settings import ReplicationSettings
from controllerd.replication.status import PairStatus
from controllerd.replication.takeover import TABLE as TAKEOVERS
from controllerd.replication.takeover_orders import TakeoverOrders
from controllerd.replication.timer import PairTimer
from controllerd.storage.group import Group
from controllerd.storage.retention import RECOVERED
from controllerd.storage.system import StorageSystem

RUN_FACT: Final = "replication-boot"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What went with a group: its volumes' names, and its sides of pairs, each with whether its peer heard it."""

    volumes: list[str]
    pairs: list[tuple[PairRecord, bool]]


class PairManager:
    """All pairs of one controller. ``clock`` gives wall time in ns, ``report`` logs an event."""

    def __init__(
        self,
        storage: StorageSystem,
        settings: ReplicationSettings,
        *,
        clock: Callable[[], int],
        rng: random.Random,
        report: Report,
    ) -> None:
        self.context = Context(settings, storage, clock, rng, report)
        self._pairs = pairs = PairRegister()
        self.primaries, self.secondaries, self.domains = pairs.primaries, pairs.secondaries, pairs.domains
        requests = Requests(pairs, report)
        self._acceptor = Acceptor(settings, requests.request, requests.unproved)
        self._orders = asyncio.Lock()
        self._overview = overview = Overview(pairs)
        self.status, self.specs, self.peer_link = overview.status, overview.specs, overview.peer_link
        self._takeovers = takeovers = TakeoverOrders(self.context, pairs, self._orders)
        self.preview, self.takeover = takeovers.preview, takeovers.run
        self._events = PairEvents(self.context, pairs)
        self._kept = KeptPairs(self.context, pairs)
        self._timer = PairTimer(self.context, pairs, overview, self._kept)
        self._farewells = Farewells(self.context)

    # ---- life ----------------------------------------------------------------------

    def load(self) -> None:
        """Read the kept pairs and make their journals kept, their mirrors required and their fences stand.

        To be called right after the storage system's start, before anything else can run:
        until then the recovered journals are kept whole.

        Raises:
            Corrupt: a kept pair cannot be read.
        """
        context = self.context
        storage, settings = context.storage, context.settings
        rebooted = bool(settings.boot) and storage.catalogue.get_fact(RUN_FACT) != settings.boot
        for name, document in storage.catalogue.get_documents(TABLE).items():
            record = read_record(name, document)
            group = storage.groups.get(record.group)
            if group is None:
                context.report("pair-without-group", {"pair": name, "group": record.group})
                continue
            lossy = rebooted and group.durability == "cache"  # what a stable group acknowledged was durable
            if lossy and record.role is Role.SECONDARY and record.spec.mode == "sync" and record.generation:
                record.in_doubt = True
                context.save(record)
            if record.role is Role.PRIMARY:
                self._add_primary(record, group).start(created=False)
            else:
                self._add_secondary(record, group)
        storage.catalogue.put_fact(RUN_FACT, settings.boot)
        self._kept.restore()
        for pair in self.secondaries.values():
            pair.prove_contact()
            if not self._takeovers.under_way(pair.record.spec.domain):
                pair.doubt()
        for group in storage.groups.values():
            group.set_retention(RECOVERED, None)
        storage.guard = self.refuse_change
        storage.on_recovered = self._go_on

    async def start(self) -> None:
        """Finish what a crash left half done, show what may be shown, listen, and begin to pull.

        Raises:
            OSError: the transfer port cannot be listened on.
        """
        for pair in list(self.secondaries.values()):
            if not pair.record.prepared:
                if pair.group.recovered:
                    await self._prepare_secondary(pair)
            elif pair.record.state is not PairState.SSWS:
                self._join_domain(pair)
        await self._takeovers.finish()
        for domain in self.domains.values():
            await domain.settle()
        await self._acceptor.start()
        self._farewells.start()
        for pair in self.secondaries.values():
            pair.contact.applied(pair.intake.applied_seq)
            if not self._takeovers.under_way(pair.record.spec.domain):
                pair.start()
        self._timer.start()

    @staticmethod
    def _join_domain(pair: SecondaryPair) -> None:
        try:
            pair.join_domain()
        except RemoteCopyError as error:
            pair.suspend(PairEvent.FAIL, str(error))

    async def stop(self) -> None:
        """Close every connection; pairs go on by themselves after the next start."""
        await self._timer.stop()
        await self._kept.finish()
        await self._farewells.stop()
        for domain in self.domains.values():
            domain.freeze()
        for secondary in self.secondaries.values():
            await secondary.stop()
            secondary.intake.close()
        for primary in self.primaries.values():
            primary.stop()
        await self._acceptor.stop()

    @property
    def port(self) -> int:
        """TCP port of the transfer path, 0 if there is none."""
        return self._acceptor.port

    def _add_primary(self, record: PairRecord, group: Group) -> PrimaryPair:
        pair = PrimaryPair(
            record, group, self.context,
            source=lambda: self._events.source(group), on_sync_loss=self._events.sync_lost,
            on_fenced=self._events.fenced,
        )  # fmt: skip
        self.primaries[record.spec.identity] = pair
        group.on_overflow = lambda: self._events.overflow(group)
        return pair

    def _add_secondary(self, record: PairRecord, group: Group) -> SecondaryPair:
        domain = self.domains.get(record.spec.domain)
        settings = self.context.settings
        if domain is None:
            domain = self.domains[record.spec.domain] = DomainApplier(
                record.spec.domain,
                order=record.spec.order or settings.order,
                slice_records=settings.slice_records,
                report=self.context.report,
                clock=self.context.clock,
            )
        pair = SecondaryPair(record, group, domain, self.context, others=lambda: self._pairs.by_group(domain).values())
        pair.contact.on_limit = self._kept.keep_limits
        self.secondaries[record.spec.identity] = pair
        return pair

    # ---- orders ----------------------------------------------------------------------

    async def create(self, role: Role, spec: PairSpec) -> PairStatus:
        """Create this controller's side of a pair; durable on return. First at the secondary, then at the primary.

        A repeated order with the same parameters changes nothing.

        Raises:
            BadOrder, NotFound, Conflict: not possible; nothing was changed.
            Busy: a takeover of the domain is under way.
        """
        async with self._orders:
            pair = self._pairs.find(spec.identity)
            if pair is not None:
                if pair.record.spec != spec or pair.record.role is not role:
                    raise Conflict(f"pair {spec.identity} exists with other parameters; delete it first")
                return self._overview.status_of(pair)
            group = check_create(self.context, role, spec, self._pairs.records())
            if role is Role.SECONDARY:
                self._takeovers.check(spec.domain)
                await self._farewells.withdraw(spec.identity)
                return self._overview.status_of(await self._create_secondary(spec, group))
            return self._overview.status_of(await self._create_primary(spec, group))

    async def _create_secondary(self, spec: PairSpec, group: Group) -> SecondaryPair:
        now = self.context.clock()
        record = PairRecord(spec, Role.SECONDARY, PairState.PAIR, now, now)
        # The record first: after a crash from here on, start-up goes on with the order.
        self.context.save(record)
        pair = self._add_secondary(record, group)
        await self._prepare_secondary(pair)
        pair.start()
        return pair

    async def _prepare_secondary(self, pair: SecondaryPair) -> None:
        """Make the group a secondary whose volumes have the primary's keys."""
        storage, group, spec = self.context.storage, pair.group, pair.record.spec
        for volume in spec.volumes:
            await storage.rekey_volume(volume.secondary, volume.key)
        if spec.mode == "sync":
            await storage.change_role(group, Role.SECONDARY)
        else:
            await storage.restart_group(
                group, role=Role.SECONDARY, generation=group.generation, last_seq=0, numbered_here=False
            )
        pair.record.prepared = True
        self.context.save(pair.record)
        self._join_domain(pair)
        self.context.report("pair-created", {"pair": spec.identity, "role": Role.SECONDARY.value})

    async def _create_primary(self, spec: PairSpec, group: Group) -> PrimaryPair:
        # No await up to `start`: no write may come between the check that the volumes are empty and the number taken.
        now = self.context.clock()
        record = PairRecord(
            spec, Role.PRIMARY, PairState.PAIR, now, now,
            generation=group.generation, start_seq=group.last_seq, prepared=True,
            base_time=max(group.last_time, self.context.storage.write_time.last),
            time_source=self.context.storage.write_time.source,
        )  # fmt: skip
        self.context.save(record)
        pair = self._add_primary(record, group)
        pair.start(created=True)
        self.context.report("pair-created", {"pair": spec.identity, "role": Role.PRIMARY.value})
        # A number below the beginning must not be given twice after a power cut.
        await group.make_durable()
        return pair

    async def suspend(self, pair_id: str, reason: str = "by order") -> PairStatus:
        """Split a pair by order (PSUS); the other side learns it on contact.

        Raises:
            NotFound: no such pair.
            BadOrder: not possible in its state.
        """
        async with self._orders:
            pair = self._pairs.get(pair_id)
            pair.suspend(PairEvent.SPLIT, reason)
            return self._overview.status_of(pair)

    async def delete(self, pair_id: str, *, force: bool = False) -> None:
        """Delete this controller's side. The other side is told, and deletes its own by the same order there.

        A secondary's volumes become ordinary ones with the image they show now. Without
        ``force`` the peer must be connected, or have deleted its side, or the pair be taken over.

        Raises:
            NotFound: no such pair.
            Conflict: the peer cannot be told.
            Busy: a takeover of the domain is under way.
        """
        async with self._orders:
            pair = self._pairs.get(pair_id)
            record = pair.record
            connected = pair.sender.connected if isinstance(pair, PrimaryPair) else pair.receiver.connected
            if not (force or connected or record.peer_deleted or record.state is PairState.SSWS):
                raise Conflict(
                    f"{record.peer} is not connected and would keep its side of pair {pair_id}; delete with force"
                    " if it is gone, and delete it there too when it comes back"
                )
            farewell = Notice("delete", f"deleted at {self.context.settings.controller}").encode()
            if isinstance(pair, PrimaryPair):
                self._delete_primary(pair, farewell)
            else:
                self._takeovers.check(record.spec.domain)
                if not (connected or record.peer_deleted or record.state is PairState.SSWS):
                    self._farewells.add(record, f"deleted at {self.context.settings.controller}")
                await self._delete_secondary(pair, farewell)
            self.context.report("pair-deleted", {"pair": pair_id, "role": record.role.value})

    def _delete_primary(self, pair: PrimaryPair, farewell: bytes) -> None:
        identity = pair.record.spec.identity
        self.context.storage.catalogue.delete_document(TABLE, identity)
        del self.primaries[identity]
        pair.sender.drop("the pair was deleted", farewell)
        pair.delete()
        if not any(other.group is pair.group for other in self.primaries.values()):
            pair.group.on_overflow = None

    async def _delete_secondary(self, pair: SecondaryPair, farewell: bytes) -> None:
        record, group, storage = pair.record, pair.group, self.context.storage
        await self._detach(pair, farewell)
        if group.role is Role.SECONDARY:
            if record.spec.mode == "sync":
                pair.end_doubt()
                await group.make_durable()
                while group.applied_seq < group.last_seq:
                    group.apply_through(group.applied_seq + 256)
                    await asyncio.sleep(0)
                await storage.change_role(group, Role.PRIMARY)
            else:
                await storage.restart_group(
                    group,
                    role=Role.PRIMARY,
                    generation=self.context.rng.randrange(1, 1 << 32),
                    last_seq=group.applied_seq,
                    last_time=group.last_time,
                )
        # Last: after a crash before this the order can simply be given again.
        self._drop_secondary(pair)

    @staticmethod
    async def _detach(pair: SecondaryPair, farewell: bytes) -> None:
        """Nothing arrives any more, and the group holds no other one back."""
        await pair.stop(farewell)
        pair.domain.remove(pair.group.name)
        pair.intake.close()

    def _drop_secondary(self, pair: SecondaryPair) -> None:
        catalogue, identity = self.context.storage.catalogue, pair.record.spec.identity
        catalogue.delete_document(TABLE, identity)
        del self.secondaries[identity]
        if not pair.domain.groups:
            self.domains.pop(pair.domain.name, None)
            catalogue.delete_document(TAKEOVERS, pair.domain.name)

    # ---- groups that cannot work -------------------------------------------------------

    async def forget_group(self, name: str) -> Forgotten:
        """Forget a group whose journal or disk failed, with its data and its sides of pairs; durable on return.

        The peers are told, at the latest when they are reached. An unfinished takeover can go on without it.

        Raises:
            NotFound: there is no such group.
            Conflict: it works.
            DiskFailed: the catalogue cannot be written; what is not done yet is done when ordered again.
        """
        async with self._orders:
            storage = self.context.storage
            error = storage.held.check(name)
            group = storage.group(name)
            reason = group.say(f"was forgotten at {self.context.settings.controller}", error)
            farewell = Notice("delete", reason).encode()
            group.fail_waiting(error)  # nothing of it may be acknowledged because no mirror is waited for any more
            gone: list[tuple[PairRecord, bool]] = []
            for primary in [pair for pair in self.primaries.values() if pair.group is group]:
                gone.append((primary.record, primary.sender.connected))
                self._delete_primary(primary, farewell)
            for secondary in [pair for pair in self.secondaries.values() if pair.group is group]:
                gone.append((secondary.record, secondary.receiver.connected))
                self._farewells.add(secondary.record, reason)
                await self._detach(secondary, farewell)
                self._drop_secondary(secondary)
            return Forgotten(await storage.held.forget(name), gone)

    async def recover_group(self, name: str) -> int:
        """Try the recovery of a held group again; returns how many records were redone. Its pairs then go on.

        Raises:
            NotFound, Conflict, DiskFailed, Corrupt: see `HeldGroups.recover`.
        """
        redone = await self.context.storage.held.recover(name)
        for pair in [pair for pair in self.secondaries.values() if pair.group.name == name]:
            if not pair.record.prepared:
                await self._prepare_secondary(pair)
                pair.start()
        return redone

    def _go_on(self, group: Group) -> None:
        """A group that was held works again: its pairs go on as they do after a start."""
        for primary in self.primaries.values():
            if primary.group is group:
                primary.start(created=False)
        for secondary in self.secondaries.values():
            if secondary.group is group and secondary.record.prepared:
                secondary.stall = None
                if secondary.record.state is not PairState.SSWS:
                    self._join_domain(secondary)
                secondary.contact.applied(secondary.intake.applied_seq)
                if not self._takeovers.under_way(secondary.record.spec.domain):
                    secondary.doubt()
                    secondary.start()
        group.set_retention(RECOVERED, None)

    def refuse_change(self, group: Group, what: str) -> None:
        """Refuse a change of a group's volumes while it is in a pair (storage calls this first).

        Raises:
            Conflict: it is in one.
        """
        for record in self._pairs.records():
            if record.group == group.name and not (record.role is Role.SECONDARY and record.state is PairState.SSWS):
                raise Conflict(
                    f"cannot {what}: group {group.name} is in pair {record.spec.identity}; delete that first"
                )
