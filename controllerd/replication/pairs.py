"""Pairs of this controller: orders, start-up, and everything that runs in the background.

Owns: which pairs and apply domains there are, the orders on them, the transfer port, and
the one timer that ticks, heartbeats and time limits share.
Never: moves data; the two sides of a pair (primary.py, secondary.py) do.

Both sides of a pair are created by the same order with the same `PairSpec`, first at the
secondary and then at the primary; every order may be repeated.

Source: spec §7; architecture §6; invariants I13-I16, I19, I20.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from controllerd.model.errors import Conflict, NotFound, RemoteCopyError
from controllerd.model.pair_state import PairEvent, PairState, Role
from controllerd.replication.applier import DomainApplier
from controllerd.replication.checks import check_create
from controllerd.replication.contact import Contact, KeptContacts
from controllerd.replication.context import Context
from controllerd.replication.farewells import Farewells
from controllerd.replication.frames import Frame, FrameError, FrameType
from controllerd.replication.intake import SyncIntake
from controllerd.replication.kept import Keepable, KeptFigures
from controllerd.replication.links import Acceptor, Link
from controllerd.replication.messages import Farewell, Fence, Notice, Pull, Refuse, RefuseCode
from controllerd.replication.pair_record import TABLE, PairRecord, PairSpec, read_record
from controllerd.replication.ports import GroupPort, Report
from controllerd.replication.primary import PrimaryPair
from controllerd.replication.secondary import SecondaryPair
from controllerd.replication.sender import Sender, Source
from controllerd.replication.settings import ReplicationSettings
from controllerd.replication.status import PairStatus, find_holder, primary_status, secondary_status
from controllerd.replication.takeover import TABLE as TAKEOVERS
from controllerd.replication.takeover import Takeover, TakeoverReport, is_undecided, refuse_during_takeover
from controllerd.replication.ticker import Ticker
from controllerd.storage.group import RECOVERED, Group
from controllerd.storage.system import StorageSystem

RUN_FACT: Final = "replication-boot"
ACKS_FACT: Final = "replication-acks"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What went with a group: its volumes' names, and its sides of pairs, each with whether its peer heard it."""

    volumes: list[str]
    pairs: list[tuple[PairRecord, bool]]


_REQUESTS: Final[dict[int, Callable[[memoryview], Pull | Fence | Farewell]]] = {
    FrameType.PULL: Pull.decode_untrusted,
    FrameType.FENCE: Fence.decode_untrusted,
    FrameType.FAREWELL: Farewell.decode_untrusted,
}
"""What a connection may ask for first, and how it is read."""


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
        self.primaries: dict[str, PrimaryPair] = {}
        self.secondaries: dict[str, SecondaryPair] = {}
        self.domains: dict[str, DomainApplier] = {}
        self._acceptor = Acceptor(settings, self._request, self._unproved)
        self._ticker = Ticker(storage.write_time, clock, self._journal_tick)
        self._timer: asyncio.Task[None] | None = None
        self._orders = asyncio.Lock()
        run_blocking = storage.checkpointer.run_blocking
        self._kept_contacts = KeptContacts(storage.catalogue, run_blocking, report)
        self._kept_acks = KeptFigures(storage.catalogue, ACKS_FACT, run_blocking, report)
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
        self._kept_contacts.restore(self._contacts)
        self._kept_acks.restore(self._senders)
        for pair in self.secondaries.values():
            pair.prove_contact()
            if not self._taking_over(pair.record.spec.domain):
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
        for name, document in self.context.storage.catalogue.get_documents(TAKEOVERS).items():
            if is_undecided(document) and name in self.domains:
                self.domains[name].freeze()
                await self._finish_takeover(name)
        for domain in self.domains.values():
            await domain.settle()
        await self._acceptor.start()
        self._farewells.start()
        for pair in self.secondaries.values():
            pair.contact.applied(pair.intake.applied_seq)
            if not self._taking_over(pair.record.spec.domain):
                pair.start()
        self._timer = asyncio.get_running_loop().create_task(self._run_timer(), name="replication timer")

    @staticmethod
    def _join_domain(pair: SecondaryPair) -> None:
        try:
            pair.join_domain()
        except RemoteCopyError as error:
            pair.suspend(PairEvent.FAIL, str(error))

    async def _finish_takeover(self, domain: str) -> None:
        try:
            await self._takeover(domain).run()
        except RemoteCopyError as error:
            # It stays decided: nothing is pulled, and ordering it again goes on with it.
            self.context.report("takeover-unfinished", {"domain": domain, "error": str(error)})

    async def stop(self) -> None:
        """Close every connection; pairs go on by themselves after the next start."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await timer
        for kept, items in self._kept():
            await kept.settle()
            with contextlib.suppress(RemoteCopyError):  # what is not kept makes what is known older, never newer
                kept.keep_now(items, asyncio.get_running_loop().time())
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
            source=lambda: self._source(group), on_sync_loss=self._on_sync_loss, on_fenced=self._on_fenced,
        )  # fmt: skip
        self.primaries[record.spec.identity] = pair
        group.on_overflow = lambda: self._on_overflow(group)
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
        pair = SecondaryPair(record, group, domain, self.context)
        pair.contact.on_limit = self._keep_limits
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
            pair = self._find(spec.identity)
            if pair is not None:
                if pair.record.spec != spec or pair.record.role is not role:
                    raise Conflict(f"pair {spec.identity} exists with other parameters; delete it first")
                return self._status(pair)
            group = check_create(self.context, role, spec, self._records())
            if role is Role.SECONDARY:
                self._check_takeover(spec.domain)
                await self._farewells.withdraw(spec.identity)
                return self._status(await self._create_secondary(spec, group))
            return self._status(await self._create_primary(spec, group))

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
            pair = self._pair(pair_id)
            pair.suspend(PairEvent.SPLIT, reason)
            return self._status(pair)

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
            pair = self._pair(pair_id)
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
                self._check_takeover(record.spec.domain)
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
                if not self._taking_over(secondary.record.spec.domain):
                    secondary.doubt()
                    secondary.start()
        group.set_retention(RECOVERED, None)

    def preview(self, domain: str = "default") -> TakeoverReport:
        """Say what a takeover of ``domain`` would give now, and what would be missing. Changes nothing.

        Raises:
            NotFound: the domain has no secondary group here.
        """
        return self._takeover(domain).preview()

    async def takeover(self, domain: str = "default") -> TakeoverReport:
        """Take over ``domain``: its volumes are writable on return, at one consistent cut (spec §7.6).

        May be repeated after any failure or crash; a finished takeover gives its report again.

        Raises:
            NotFound: the domain has no secondary group here.
            BadOrder: a pair is in a state that does not allow it.
            Conflict: the copy of a group was taken over itself, at a site further on: hosts write there.
            StorageError: what arrived cannot be made durable or visible; repeat when it can.
        """
        async with self._orders:
            takeover = self._takeover(domain)
            self._check_further_on(domain)
            return await takeover.run()

    def _check_further_on(self, domain: str) -> None:
        """Refuse to take over a group that has been fenced: its volumes could not be written (I16)."""
        groups = {pair.group.name for pair in self.secondaries.values() if pair.record.spec.domain == domain}
        for primary in self.primaries.values():
            record = primary.record
            if record.group in groups and record.state is PairState.SSWS:
                raise Conflict(
                    f"group {record.group}: {record.reason}; hosts write at {record.peer} now. To write here all the"
                    f" same, delete pair {record.spec.identity} here first",
                    group=record.group,
                )

    def _takeover(self, name: str) -> Takeover:
        domain = self.domains.get(name)
        if domain is None:
            known = ", ".join(sorted(self.domains)) or "none"
            raise NotFound(f"no apply domain named {name} here (there are: {known})", domain=name)
        pairs = [pair for pair in self.secondaries.values() if pair.domain is domain]
        return Takeover(domain, pairs, self.context)

    def _taking_over(self, domain: str) -> bool:
        document = self.context.storage.catalogue.get_documents(TAKEOVERS).get(domain)
        return document is not None and is_undecided(document)

    def _check_takeover(self, domain: str) -> None:
        refuse_during_takeover(self.context.storage.catalogue.get_documents(TAKEOVERS).get(domain), domain)

    def refuse_change(self, group: Group, what: str) -> None:
        """Refuse a change of a group's volumes while it is in a pair (storage calls this first).

        Raises:
            Conflict: it is in one.
        """
        for record in self._records():
            if record.group == group.name and not (record.role is Role.SECONDARY and record.state is PairState.SSWS):
                raise Conflict(
                    f"cannot {what}: group {group.name} is in pair {record.spec.identity}; delete that first"
                )

    # ---- what is asked for ---------------------------------------------------------------

    def status(self) -> list[PairStatus]:
        """Where every pair stands, by group."""
        pairs: list[PrimaryPair | SecondaryPair] = [*self.primaries.values(), *self.secondaries.values()]
        return [self._status(pair) for pair in sorted(pairs, key=lambda pair: (pair.record.group, pair.record.role))]

    def specs(self) -> list[tuple[Role, PairSpec]]:
        """The orders that made the pairs, with this controller's side."""
        return [(record.role, record.spec) for record in self._records()]

    def _status(self, pair: PrimaryPair | SecondaryPair) -> PairStatus:
        if isinstance(pair, PrimaryPair):
            return primary_status(pair)
        return secondary_status(pair, self._by_group(pair.domain))

    def _by_group(self, domain: DomainApplier) -> dict[str, SecondaryPair]:
        return {pair.group.name: pair for pair in self.secondaries.values() if pair.domain is domain}

    def _held(self, pair: SecondaryPair) -> str:
        """What holds the line of the pair's domain, as an ACK says it."""
        by_group = self._by_group(pair.domain)
        held = find_holder(pair.domain, by_group, {name: other.why_unheard() for name, other in by_group.items()})
        return "" if held is None else f"{held.group}\n{held.why}"

    def peer_link(self, name: str) -> tuple[bool | None, str]:
        """Whether records can travel to or from a peer, and why not; None: no connection is wanted."""
        primaries = [pair for pair in self.primaries.values() if pair.record.peer == name]
        secondaries = [pair for pair in self.secondaries.values() if pair.record.peer == name]
        if any(pair.sender.connected for pair in primaries) or any(pair.receiver.connected for pair in secondaries):
            return True, ""
        waiting = [f"waiting for {name} to connect ({pair.sender.reason})" for pair in primaries if pair.active]
        waiting += [pair.receiver.reason for pair in secondaries if pair.active]
        if waiting:
            return False, waiting[0]
        pairs: list[PrimaryPair | SecondaryPair] = [*primaries, *secondaries]
        states = [f"pair {pair.record.spec.identity} is {pair.record.state.value}" for pair in pairs]
        return None, f"no connection wanted: {', '.join(states)}" if states else ""

    @property
    def _contacts(self) -> dict[str, Contact]:
        return {identity: pair.contact for identity, pair in self.secondaries.items()}

    @property
    def _senders(self) -> dict[str, Sender]:
        return {identity: pair.sender for identity, pair in self.primaries.items()}

    def _kept(self) -> list[tuple[KeptFigures, Mapping[str, Keepable]]]:
        """What is kept of those pairs that there are."""
        both: list[tuple[KeptFigures, Mapping[str, Keepable]]] = [
            (self._kept_contacts, self._contacts),
            (self._kept_acks, self._senders),
        ]
        return [(kept, items) for kept, items in both if items]

    def _keep_limits(self) -> None:
        self._kept_contacts.keep_limits(self._contacts, asyncio.get_running_loop().time())

    def _source(self, group: Group) -> Source:
        """How old the content of ``group`` is, if it is the secondary of another pair."""
        found = [pair.source() for pair in self.secondaries.values() if pair.group is group]
        return found[0] if found else Source()

    def _say_how_old(self, group: GroupPort) -> None:
        for pair in self.primaries.values():
            if pair.group is group:
                pair.sender.heartbeat()

    def _records(self) -> list[PairRecord]:
        primaries = [pair.record for pair in self.primaries.values()]
        return primaries + [pair.record for pair in self.secondaries.values()]

    def _find(self, pair_id: str) -> PrimaryPair | SecondaryPair | None:
        return self.primaries.get(pair_id) or self.secondaries.get(pair_id)

    def _pair(self, pair_id: str) -> PrimaryPair | SecondaryPair:
        pair = self._find(pair_id)
        if pair is None:
            raise NotFound(f"no pair {pair_id} here", pair=pair_id)
        return pair

    # ---- events ----------------------------------------------------------------------------

    def _request(self, link: Link, frame: Frame) -> None:
        """First frame of an authenticated connection."""
        decode = _REQUESTS.get(frame.type)
        if decode is None:
            raise FrameError(f"frame type {frame.type} where PULL, FENCE or FAREWELL has to come")
        request = decode(frame.payload)
        pair = self.primaries.get(request.pair)
        if pair is None:
            link.send(Refuse(RefuseCode.UNKNOWN_PAIR, f"no pair {request.pair} here", "", 0).encode())
            link.close("unknown pair")
        elif isinstance(request, Pull):
            pair.pull(link, request)
        elif isinstance(request, Fence):
            pair.fence(link, request)
        else:
            pair.farewell(link, request)

    def _unproved(self, address: str, claimed: str, reason: str) -> None:
        """Somebody who says it is controller ``claimed`` did not prove it."""
        self.context.report("peer-refused", {"address": address, "claims": claimed, "reason": reason})
        for pair in self.primaries.values():
            if pair.record.peer == claimed and not pair.sender.connected:
                pair.sender.reason = f"refused at {address}: {reason}"

    def _on_sync_loss(self, lost: PrimaryPair, reason: str) -> None:
        """The synchronous peer of one pair does not answer: all pairs of its domain go on, or stop, together.

        So the image at the peer is frozen at one moment over all groups (rolling disaster).
        """
        spec = lost.record.spec
        facts: dict[str, object] = {"pair": spec.identity, "domain": spec.domain, "policy": spec.on_sync_loss}
        self.context.report("sync-lost", {**facts, "reason": reason})
        if spec.on_sync_loss == "block":
            return
        affected = [
            pair
            for pair in self.primaries.values()
            if pair.record.spec.mode == "sync"
            and pair.record.spec.domain == spec.domain
            and pair.record.peer == lost.record.peer
        ]
        why = f"{reason} (pair {spec.identity})"
        # All are durable before the first write is acknowledged without the mirror (I3).
        active = [pair for pair in affected if pair.active]
        for pair in active:
            pair.mark_suspended(PairEvent.FAIL, why)
        for pair in affected:
            pair.finish_suspend(PairEvent.FAIL, why)

    def _on_fenced(self, fenced: PrimaryPair, reason: str) -> None:
        """The last site of a cascade was taken over: the first one must not take writes either (I16)."""
        for pair in self.secondaries.values():
            if pair.group is fenced.group and pair.record.state is not PairState.SSWS:
                pair.record.fence = {
                    "generation": fenced.group.generation, "cut_seq": pair.intake.received_seq, "reason": reason,
                }  # fmt: skip
                pair.record.diverged = {"cut_seq": pair.intake.received_seq, "last_seq": pair.intake.received_seq}
                self.context.save(pair.record)
                if pair.active:
                    pair.suspend(PairEvent.FAIL, reason)
                pair.start_fencing()

    def _on_overflow(self, group: Group) -> None:
        now_s = asyncio.get_running_loop().time()
        pairs = [pair for pair in self.primaries.values() if pair.group is group]
        if pairs:
            min(pairs, key=lambda pair: pair.sender.ack.durable if pair.active else -1).overflow(now_s)

    # ---- timer --------------------------------------------------------------------------------

    async def _run_timer(self) -> None:
        settings = self.context.settings
        loop = asyncio.get_running_loop()
        next_beat_s = 0.0
        while True:
            await asyncio.sleep(settings.tick_interval_s)
            now_s = loop.time()
            beat = now_s >= next_beat_s
            if beat:
                next_beat_s = now_s + settings.heartbeat_interval_s
            try:
                self._turn(now_s, beat)
            except Exception as error:
                # The timer holds up every pair; what went wrong with one is tried again at the next turn.
                self.context.report("replication-timer-error", {"error": repr(error)})

    def _turn(self, now_s: float, beat: bool) -> None:
        self._tick()
        for primary in list(self.primaries.values()):
            primary.check(now_s)
            if beat:
                primary.sender.heartbeat()
        if beat:
            for secondary in list(self.secondaries.values()):
                secondary.receiver.heartbeat(now_s, self._held(secondary))
                secondary.ask_again(now_s)
            for kept, items in self._kept():
                kept.keep(items, now_s)

    def _tick(self) -> None:
        # Groups that get ticks from upstream, or must get nothing because a takeover has decided their cut.
        fed = {
            pair.group.name
            for pair in self.secondaries.values()
            if pair.receiver.connected or (pair.domain.frozen and pair.record.state is not PairState.SSWS)
        }
        # The primary of a suspended pair takes writes that never come here: what other groups get may depend on them.
        # So may it on what this site has lost with its power.
        held = {
            pair.group.name
            for pair in self.secondaries.values()
            if (not pair.active or pair.record.in_doubt) and pair.record.state is not PairState.SSWS
        }
        groups: dict[str, GroupPort] = {}
        wanted: set[str] = set()
        for primary in self.primaries.values():
            group = primary.group
            if primary.active and primary.sender.connected:
                if group.name not in fed | held:
                    groups[group.name] = group
                if primary.sender.tick_wanted:
                    wanted.add(group.name)
        for secondary in self.secondaries.values():
            secondary.downstream_waits = secondary.group.name in wanted
            # Upstream is down: this side promises that nothing older follows, so that what is here can be shown.
            record, group = secondary.record, secondary.group
            upstream = record.spec.mode == "sync" and record.state is not PairState.SSWS and record.generation
            # A group that is not recovered has old numbers: they must not say what is known here, and it takes no tick.
            if upstream and group.recovered and group.name not in fed | held:
                groups[group.name] = group
        self._ticker.tick(self._ticker.look(groups.values(), lambda group: group.name in wanted))
        for secondary in self.secondaries.values():
            # Its journal is full of what can be shown once a later time of it is here: the primary's finds no room.
            sure = secondary.active and not secondary.record.in_doubt
            if sure and secondary.stall and secondary.domain.doubt_waits_for(secondary.group.name):
                time = self.context.storage.write_time.pass_on_tick(0, self.context.clock())
                with contextlib.suppress(RemoteCopyError):
                    self._journal_tick(secondary.group, time)

    def _journal_tick(self, group: GroupPort, time: int) -> None:
        for secondary in self.secondaries.values():
            intake = secondary.intake
            if secondary.group is group and group.role is Role.SECONDARY and isinstance(intake, SyncIntake):
                if secondary.drift():
                    self._say_how_old(group)  # before the tick is sent to anybody
                intake.local_tick(time)
                return
        group.stage_tick(time)
        group.commit()
