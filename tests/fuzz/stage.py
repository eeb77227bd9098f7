"""Sites on a simulated network, one of them attacked by a peer that has the right key and keeps no rule.

Owns: the attacked site T, its friend F with a pair in each direction, the attacker X, and what must hold in the end:
nothing crashed inside, memory was bounded, and the pairs with F were not disturbed (I17).
Never: decides what the attacker does; `transfer_primary` and `transfer_secondary` do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, Literal

from controllerd.model.errors import Busy, RemoteCopyError
from controllerd.model.pair_state import PairState, Role
from controllerd.replication.frames import MAX_DATA_PAYLOAD, Frame
from controllerd.replication.links import Acceptor, Link, dial
from controllerd.replication.pair_record import Mode, PairSpec, PairVolume
from controllerd.replication.settings import Endpoint, PeerSettings, ReplicationSettings
from controllerd.storage.settings import StorageSettings
from tests.fuzz.source import Source
from tests.simulation.clocks import SiteClock
from tests.simulation.disk import Loss
from tests.simulation.life import Life
from tests.simulation.machine import KEY, PORT, Site
from tests.simulation.network import Network, WorldLoop
from tests.simulation.storage_machine import DATA
from tests.simulation.workload import read_volume
from tests.simulation.world import small_pieces

Durability = Literal["cache", "stable"]

TARGET: Final = "T"
FRIEND: Final = "F"
ATTACKER: Final = "X"
BLOCK: Final = 4096
FRAME_BYTES: Final = 8 << 10
SIZE: Final = 16 * BLOCK
CONNECTIONS_MAX: Final = 12
WINDOW_BYTES: Final = 64 << 10
RUNS_MAX: Final = 16
PATIENCE_S: Final = 30.0
WRITE_MAX_S: Final = 10.0
"""Longest time that a host's write may take, whatever the attacker does (I7), in virtual seconds."""
_STORAGE: Final[dict[str, Any]] = {
    "cache_bytes": 1 << 20,
    "journal_bytes": 6 * (96 << 10),
    "segment_bytes": 96 << 10,
    "tail_bytes": 64 << 10,
    "pending_bytes": 64 << 10,
    "region_bytes": 8 << 10,
    "checkpoint_interval_s": 0.7,
    "destage_age_s": 0.2,
    "max_request_bytes": 16 << 10,
}
_REPLICATION: Final[dict[str, Any]] = {
    "tick_interval_s": 0.1,
    "heartbeat_interval_s": 0.2,
    "peer_timeout_s": 2.0,
    "handshake_timeout_s": 1.0,
    "window_bytes": WINDOW_BYTES,
    "connections": 2,
    "connections_max": CONNECTIONS_MAX,
    "backoff_max_s": 0.3,
    "fence_backoff_max_s": 0.5,
    "gap_timeout_s": 0.5,
    "sync_timeout_s": 1.0,
    "throttle_timeout_s": 2.0,
    "mirror_sync_interval_s": 0.05,
}


class Attacker:
    """Who has the key of X. ``links``: connections that have done the handshake; ``heard``: what came on each."""

    def __init__(self, loop: WorldLoop) -> None:
        self.life = Life(ATTACKER)
        self.links: list[Link] = []
        self.heard: dict[Link, list[Frame]] = {}
        self.on_request: Callable[[Link, Frame], None] = lambda _link, _frame: None
        nonces = random.Random(ATTACKER)
        self._settings = ReplicationSettings(
            controller=ATTACKER,
            serial=sum(ATTACKER.encode()),
            listen=Endpoint(ATTACKER, PORT),
            peers={TARGET: PeerSettings(TARGET, Endpoint(TARGET, PORT))},
            shared_key=KEY,
            nonce=lambda: nonces.randbytes(32),
        )
        self._acceptor = Acceptor(self._settings, self._accepted, lambda *_: None)

    async def listen(self) -> None:
        """Let T dial."""
        await self.life.perform(self._acceptor.start())

    async def dial(self) -> Link | None:
        """Dial T; None if it does not let anybody in."""
        try:
            link: Link = await self.life.perform(dial(self._settings, TARGET))
        except RemoteCopyError:
            return None
        self._keep(link)
        return link

    def send(self, link: Link, data: bytes) -> None:
        """Send any bytes."""
        self.life.call(link.send, data)

    async def leave(self) -> None:
        """Close everything, and come no more."""
        for link in self.links:
            self.life.call(link.abort, "done")
        await self.life.perform(self._acceptor.stop())

    @property
    def open_links(self) -> list[Link]:
        """Connections that T has not closed, the newest first."""
        return [link for link in reversed(self.links) if not link.closed]

    def _accepted(self, link: Link, frame: Frame) -> None:
        self._keep(link)
        self.heard[link].append(frame)
        self.on_request(link, frame)

    def _keep(self, link: Link) -> None:
        self.links.append(link)
        heard = self.heard[link] = []
        link.on_frames = lambda _link, frames: heard.extend(frames)


class Stage:
    """T, F and X. ``mode``: that of the pairs with X."""

    def __init__(self, mode: Mode, durability: Durability) -> None:
        self.mode = mode
        self.problems: list[str] = []
        self.loop = WorldLoop(lambda where, error: self.problems.append(f"unhandled at {where}: {error!r}"))
        self.loop.network = Network(self.loop, random.Random(1), lambda *_: None, lambda _mark: None)
        self.target = self._make_site(TARGET, durability)
        self.friend = self._make_site(FRIEND, durability)
        self.attacker = Attacker(self.loop)
        self._serial = 0

    @classmethod
    def draw(cls, source: Source) -> Stage:
        """A stage as ``source`` decides."""
        modes: tuple[Mode, ...] = ("async", "sync")
        durabilities: tuple[Durability, ...] = ("cache", "stable")
        return cls(source.pick(modes), source.pick(durabilities))

    def _make_site(self, name: str, durability: Durability) -> Site:
        return Site(
            name,
            self.loop,
            random.Random(name),
            SiteClock(self.loop.time),
            StorageSettings(DATA, durability=durability, **_STORAGE),
            _REPLICATION,
            self._reported,
            [other for other in (TARGET, FRIEND, ATTACKER) if other != name],
        )

    def _reported(self, site: str, event: str, facts: dict[str, object]) -> None:
        if event in ("replication-timer-error", "start-failed"):
            self.problems.append(f"{event} at {site}: {facts}")

    # ---- running --------------------------------------------------------------------------

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run to the end, and raise what was found."""
        asyncio.set_event_loop(None)
        try:
            with small_pieces(FRAME_BYTES):
                self.loop.run_until_complete(scenario)
        finally:
            self.target.destroy()
            self.friend.destroy()
            self.loop.close()
        assert not self.problems, self.problems

    async def build(self, groups: list[str]) -> None:
        """Boot T and F with a pair in each direction, and make ``groups`` at T for the pairs with X."""
        for site in (self.target, self.friend):
            site.boot()
            await self.until(lambda site=site: site.serving, f"{site.name} serves")  # type: ignore[misc]
            assert site.life is not None
            site.life.call(_make_volumes, site, ["from", "to", *(groups if site is self.target else [])])
        await self.make_pair(self.target, "from", self.friend)
        await self.make_pair(self.friend, "to", self.target)

    async def make_pair(self, primary: Site, group: str, secondary: Site) -> None:
        """Pair two sites that keep the rules."""
        order = spec(primary, group, secondary.name, "async", group)
        assert primary.life is not None
        assert secondary.life is not None
        await secondary.life.perform(secondary.pairs.create(Role.SECONDARY, order))
        await primary.life.perform(primary.pairs.create(Role.PRIMARY, order))
        await self.until(lambda: primary.pairs.primaries[order.identity].sender.connected, "the friends are connected")

    async def restart(self) -> None:
        """Kill T, and start it again."""
        self.target.end(Loss.KILL)
        self.target.boot()
        await self.until(lambda: self.target.serving, "T serves again")

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait, or note that it did not happen."""
        end_s = self.loop.now_s + PATIENCE_S
        while not condition():  # virtual time is free
            if self.loop.now_s > end_s:
                raise AssertionError(f"never: {what}; {self.problems} {self.target.pairs.status()}")
            await asyncio.sleep(0.05)

    # ---- hosts ------------------------------------------------------------------------------

    async def write(self, site: Site, volume: str, block: int) -> tuple[bytes, RemoteCopyError | None]:
        """A host's write of one block; returns what it wrote, and the error it got."""
        self._serial += 1
        data = self._serial.to_bytes(8, "big") * (BLOCK // 8)
        begun_s = self.loop.now_s
        answer: asyncio.Future[RemoteCopyError | None] = self.loop.create_future()
        group = site.storage.volumes[volume].group

        def done(error: RemoteCopyError | None) -> None:
            if not answer.done():
                answer.set_result(error)

        def stage() -> None:
            try:
                group.stage_write(site.storage.volumes[volume], block * BLOCK, memoryview(data), None)
                group.commit()
            except Busy:
                group.when_accepting(stage)
                return
            except RemoteCopyError as error:
                done(error)
                return
            group.when_complete(group.last_seq, done)

        assert site.life is not None
        site.life.call(stage)
        try:
            async with asyncio.timeout(WRITE_MAX_S):
                error = await answer
        except TimeoutError:
            raise AssertionError(f"I7: no answer in {self.loop.now_s - begun_s:.1f} s") from None
        return data, error

    async def image(self, site: Site, volume: str) -> bytes:
        """The whole of a volume, as a host reads it."""
        data, error = await read_volume(site, site.storage.volumes[volume], 0, SIZE)
        assert data is not None, f"{volume} at {site.name} cannot be read: {error}"
        return data

    # ---- what must hold -------------------------------------------------------------------------

    def look(self) -> None:
        """Memory that peers decide about is bounded."""
        if not self.target.serving:
            return
        pairs = self.target.pairs
        assert len(pairs._acceptor._links) <= CONNECTIONS_MAX
        for secondary in pairs.secondaries.values():
            held = secondary.intake.held_bytes
            assert held <= WINDOW_BYTES + 2 * MAX_DATA_PAYLOAD, f"{held} bytes are held of {WINDOW_BYTES}"
            assert len(secondary.record.runs) <= RUNS_MAX

    async def friends_are_well(self) -> None:
        """What is written now arrives, in both directions, on pairs that were never suspended."""
        for primary, group, secondary in (
            (self.target, "from", self.friend),
            (self.friend, "to", self.target),
        ):
            data, error = await self.write(primary, f"{group}-v", 3)
            assert error is None, f"a host of the friends got {error}"
            last = primary.storage.groups[group].last_seq
            pair = secondary.pairs.secondaries[f"{primary.name}:{group}-{secondary.name}:{group}"]
            assert pair.record.state is PairState.PAIR, pair.record.reason
            await self.until(
                lambda pair=pair, last=last: pair.intake.applied_seq >= last,  # type: ignore[misc]
                f"{group} is shown at {secondary.name}",
            )
            assert (await self.image(secondary, f"{group}-v"))[3 * BLOCK : 4 * BLOCK] == data


def spec(primary: Site, group: str, secondary: str, mode: Mode, domain: str) -> PairSpec:
    """The order for a pair whose primary is a real site."""
    volumes = tuple(
        PairVolume(volume.name, volume.name, volume.key, volume.size)
        for volume in primary.storage.groups[group].volumes.values()
    )
    return PairSpec(primary.name, group, secondary, group, volumes, mode=mode, domain=domain)


def _make_volumes(site: Site, groups: list[str]) -> None:
    storage = site.storage
    storage.create_disk("d", f"{DATA}/disks/d.img", len(groups) * 2 * SIZE + (256 << 10))
    storage.create_pool("p", ["d"])
    for group in groups:
        storage.create_group(group)
        storage.create_volume(f"{group}-v", SIZE, pool="p", group=group)


def blocks(image: bytes) -> Iterator[tuple[int, bytes]]:
    """Each block of an image, with its number."""
    for number in range(len(image) // BLOCK):
        yield number, image[number * BLOCK : (number + 1) * BLOCK]
