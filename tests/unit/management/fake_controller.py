"""A controller for tests of the API and of mgmtctl: real storage in a directory, pairs that are only remembered."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controllerd.daemon import Exports
from controllerd.management.schemas import (
    ForgottenPair,
    GroupForgotten,
    PairAnswer,
    PairCreate,
    PairStatus,
    Position,
    RoleName,
    TakeoverAnswer,
    TakeoverGroup,
    UnusableVolume,
)
from controllerd.model.errors import Busy, Conflict, NotFound, RemoteCopyError
from controllerd.storage.io import SystemFiles
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from controllerd.targets.nbd.server import NbdServer
from controllerd.targets.nbd.settings import NbdSettings

TOKEN = "token-of-the-tests-0123"
NOW = 1_800_000_000_000_000_000


class FakePairs:
    """Remembers pairs; ``fail`` is raised by the next order."""

    def __init__(self, storage: StorageSystem) -> None:
        self.storage = storage
        self.known: dict[tuple[str, str, str], PairAnswer] = {}
        self.fail: RemoteCopyError | None = None
        self.orders: list[PairCreate] = []
        self.taken_over: list[str] = []
        self.connected = True

    def _failing(self) -> None:
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error

    def pairs(self) -> Sequence[PairAnswer]:
        return list(self.known.values())

    def status(self) -> Sequence[PairStatus]:
        return [
            PairStatus(
                group=pair.group,
                role=pair.role,
                state=pair.state,
                peer=pair.peer,
                peer_group=pair.peer_group,
                mode=pair.mode,
                domain=pair.domain,
                connected=pair.connected,
                written=Position(seq=9, time=NOW),
                transferred=Position(seq=8),
                arrived=Position(),
                applied=Position(seq=7, time=NOW - 1_500_000_000),
                lag_bytes=4096,
                lag_s=1.5,
                holder="g2",
                holder_why="no connection",
                holder_since=NOW - 2_000_000_000,
            )
            for pair in self.known.values()
        ]

    def peer_link(self, name: str) -> tuple[bool | None, str]:
        return (True, "") if name == "B" else (None, "")

    async def create(self, order: PairCreate) -> tuple[PairAnswer, bool]:
        self._failing()
        self.orders.append(order)
        key = (order.group, order.role, order.peer)
        if key in self.known:
            return self.known[key], False
        pair = PairAnswer(
            pair_id=f"pair-{order.group}",
            group=order.group,
            role=order.role,
            state="PAIR",
            peer=order.peer,
            peer_group=order.peer_group,
            mode=order.mode,
            domain=order.domain,
            order=order.order,
            connected=self.connected,
            reason=None if self.connected else f"{order.peer} at 127.0.0.1:2: Connection refused",
            volumes=order.volumes,
        )
        self.known[key] = pair
        return pair, True

    def _find(self, group: str, role: RoleName | None, peer: str | None) -> tuple[str, str, str]:
        found = [
            key
            for key in self.known
            if key[0] == group and (role is None or key[1] == role) and (peer is None or key[2] == peer)
        ]
        if not found:
            raise NotFound(f"group {group} is in no such pair")
        if len(found) > 1:
            raise Conflict(f"group {group} is in {len(found)} pairs; name role or peer")
        return found[0]

    async def delete(self, group: str, role: RoleName | None, peer: str | None, *, force: bool = False) -> None:
        self._failing()
        if group == "unreachable" and not force:
            raise Conflict("the peer is not connected")
        del self.known[self._find(group, role, peer)]

    async def forget_group(self, name: str) -> GroupForgotten:
        self._failing()
        self.storage.held.check(name)
        gone = [
            ForgottenPair(pair_id=pair.pair_id, role=pair.role, peer=pair.peer, peer_group=pair.peer_group, told=False)
            for pair in self.known.values()
            if pair.group == name
        ]
        self.known = {key: pair for key, pair in self.known.items() if pair.group != name}
        return GroupForgotten(group=name, volumes=await self.storage.held.forget(name), pairs=gone)

    async def recover_group(self, name: str) -> None:
        self._failing()
        await self.storage.held.recover(name)

    async def suspend(self, group: str, role: RoleName | None, peer: str | None) -> PairAnswer:
        key = self._find(group, role, peer)
        self.known[key] = self.known[key].model_copy(update={"state": "PSUS"})
        return self.known[key]

    def _takeover(self, domain: str, preview: bool) -> TakeoverAnswer:
        groups = [pair for pair in self.known.values() if pair.role == "secondary" and pair.domain == domain]
        if not groups:
            raise NotFound(f"no secondary group in domain {domain}")
        return TakeoverAnswer(
            domain=domain,
            preview=preview,
            cut_time=NOW,
            rpo_s=12.75,
            rpo_known_s=0.25,
            unknown_since=NOW - 12_500_000_000,
            unknown_s=12.5,
            unheard_why="no connection to B: refused",
            rto_s=None if preview else 0.5,
            holder="g1",
            holder_why="no connection",
            groups=[
                TakeoverGroup(
                    pair_id=pair.pair_id,
                    group=pair.group,
                    peer=pair.peer,
                    peer_group=pair.peer_group,
                    mode=pair.mode,
                    state=pair.state,
                    cut_seq=7,
                    cut_time=NOW,
                    primary_seq=9,
                    unknown_since=NOW - 12_500_000_000,
                    unknown_s=12.5,
                    missing_writes=2,
                    missing_bytes=8192,
                    unusable_writes=1,
                    unusable_bytes=4096,
                    unusable=[UnusableVolume(volume="v1", writes=1, bytes=4096)],
                    volumes=[volume.secondary for volume in pair.volumes],
                )
                for pair in groups
            ],
        )

    async def preview(self, domain: str) -> TakeoverAnswer:
        return self._takeover(domain, True)

    async def takeover(self, domain: str) -> TakeoverAnswer:
        self._failing()
        self.taken_over.append(domain)
        return self._takeover(domain, False)


@dataclass
class FakeController:
    """What the API asks for."""

    storage: StorageSystem
    name: str = "A"
    serial: int = 1001
    started_at: int = NOW - 60_000_000_000
    pairs: FakePairs = field(init=False)
    peers: list[tuple[str, str, int | None]] = field(default_factory=lambda: [("B", "127.0.0.1:9813", 1002)])

    def __post_init__(self) -> None:
        self.pairs = FakePairs(self.storage)
        self.nbd = NbdServer(Exports(self.storage), NbdSettings(listen=()))

    @property
    def clock(self) -> Any:
        return lambda: NOW

    def nbd_addresses(self) -> list[str]:
        return ["127.0.0.1:10811"]

    def configured_peers(self) -> list[tuple[str, str, int | None]]:
        return self.peers

    def configuration(self) -> dict[str, Any]:
        return {"management": {"token": "**********"}, "peer": [{"name": "B"}], "nbd": {"listen": ["127.0.0.1:10811"]}}


@asynccontextmanager
async def fake_controller(directory: Path, **facts: Any) -> AsyncIterator[FakeController]:
    """A controller whose data lies in ``directory``."""
    settings = StorageSettings(
        data_directory=str(directory), journal_bytes=8 << 20, segment_bytes=4 << 20, cache_bytes=16 << 20
    )
    storage = StorageSystem(
        settings, SystemFiles(threads=2), clock=lambda: NOW, report=lambda _event, _facts: None, rng=random.Random(7)
    )
    await storage.start()
    try:
        yield FakeController(storage, **facts)
    finally:
        await storage.stop()


def busy() -> Busy:
    """An error that says try again."""
    return Busy("a takeover is under way", domain="default")
