"""The transfer path under what networks do: F19-F25. Whatever happens, the secondary ends up equal."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controllerd.model.pair_state import PairState
from controllerd.replication.settings import Endpoint, PeerSettings
from tests.integration.transfer_proxy import Fault, Proxy
from tests.integration.transfer_site import Site, caught_up, connect, pair, until


class Path2:
    """Two sites, A primary and B secondary, with a proxy between them."""

    def __init__(self, directory: Path, seed: int, **changes: Any) -> None:
        self.a = Site("A", directory / "A", **dict(changes))
        self.b = Site("B", directory / "B", **dict(changes))
        self.proxy = Proxy(lambda: self.a.port, seed)
        self.rng = random.Random(seed)
        self.written = 0

    async def start(self, mode: str = "async", **options: Any) -> Path2:
        await self.proxy.start()
        await self.a.start()
        await self.b.start()
        connect(self.a, self.b)
        self.b.peers["A"] = PeerSettings("A", Endpoint("127.0.0.1", self.proxy.port))
        for site in (self.a, self.b):
            site.make({"g": ["v"], "h": ["w"]})
        for group in "gh":
            await pair(self.a, group, self.b, mode=mode, **options)
        return self

    async def stop(self) -> None:
        await self.a.stop()
        await self.b.stop()
        await self.proxy.stop()

    def put(self, count: int) -> None:
        """Write ``count`` blocks at random places of both groups."""
        for _ in range(count):
            self.written += 1
            volume = self.rng.choice("vw")
            self.a.put(volume, self.rng.randrange(200), b"%s %d" % (volume.encode(), self.written) * 20)

    def settled(self) -> bool:
        """Whether B shows every write; a last tick that one group got alone, between two connections, may wait."""
        return all(
            self.b.pairs.secondaries[f"A:{name}-B:{name}"].intake.applied_seq >= self.a.group(name).last_seq
            for name in "gh"
        )

    async def check_equal(self) -> None:
        await until(self.settled, self.a, self.b)
        for volume in "vw":
            assert await self.b.image(volume) == await self.a.image(volume)
        for status in self.a.pairs.status() + self.b.pairs.status():
            assert status.state == PairState.PAIR


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path2]:
    found = await Path2(tmp_path, seed=1, peer_timeout_s=0.5, gap_timeout_s=0.3).start()
    yield found
    await found.stop()


@pytest.mark.parametrize("seed", range(4))
async def test_secondary_is_equal_after_resets_at_any_byte(tmp_path: Path, seed: int) -> None:
    path = Path2(tmp_path, seed)
    await path.start()
    rng = random.Random(seed)
    path.proxy.plan = lambda number: Fault(jitter_s=0.001, reset_after=rng.choice([None, rng.randrange(300, 200_000)]))
    path.proxy.cut()
    for _ in range(40):
        path.put(20)
        await asyncio.sleep(0.005)
    path.proxy.plan = lambda number: Fault()
    await path.check_equal()
    assert path.proxy.resets
    await path.stop()


async def test_reset_at_every_byte_of_the_first_frames_loses_nothing(path: Path2) -> None:
    cut_at = iter(range(200, 1200, 37))

    def plan(number: int) -> Fault:
        position = next(cut_at, None)
        return Fault(reset_after=position)

    path.proxy.plan = plan
    path.proxy.cut()
    path.put(30)
    await path.check_equal()


@pytest.mark.parametrize("seed", range(3))
async def test_flipped_bits_are_found_and_asked_for_again(tmp_path: Path, seed: int) -> None:
    path = Path2(tmp_path, seed)
    await path.start()
    rng = random.Random(seed)
    path.proxy.plan = lambda number: Fault(flip_at=rng.choice([None, rng.randrange(1000, 60_000)]))
    path.proxy.cut()
    for _ in range(40):
        path.put(10)
        await asyncio.sleep(0.005)
    await until(lambda: path.proxy.flips >= 2 or path.settled())
    path.proxy.plan = lambda number: Fault()
    await path.check_equal()
    assert path.proxy.flips
    await path.stop()


async def test_silent_link_is_given_up_and_made_anew(path: Path2) -> None:
    path.proxy.plan = lambda number: Fault(silent_after=3000) if number < 8 else Fault()
    path.proxy.cut()
    path.put(100)
    await path.check_equal()
    assert path.b.count("pair-disconnected") >= 2


async def test_lost_acknowledgements_bring_nothing_twice(path: Path2) -> None:
    path.proxy.plan = lambda number: Fault(silent_back_after=2000) if number < 8 else Fault()
    path.proxy.cut()
    for _ in range(20):
        path.put(20)
        await asyncio.sleep(0.02)
    await path.check_equal()
    assert path.b.group("g").last_seq <= path.a.group("g").last_seq


async def test_damaged_data_is_counted_and_reported_on_both_sides(path: Path2) -> None:
    def corrupt(site: Site) -> int:
        return sum(status.corrupt_frames for status in site.pairs.status())

    await path.check_equal()
    assert corrupt(path.a) + corrupt(path.b) == 0
    path.proxy.plan = lambda number: Fault(flip_at=3000)
    path.proxy.cut()
    for _ in range(40):
        path.put(10)
        await asyncio.sleep(0.005)
    await until(lambda: corrupt(path.b) > 0)
    assert path.b.count("transfer-damaged") == corrupt(path.b)
    path.proxy.plan = lambda number: Fault()
    await path.check_equal()
    path.b.pairs.secondaries["A:g-B:g"].receiver.send(bytes(64))
    await until(lambda: corrupt(path.a) == 1)
    assert path.a.count("transfer-damaged") == 1
    await path.check_equal()


async def test_connections_that_overtake_each_other_are_put_in_order(path: Path2) -> None:
    path.proxy.plan = lambda number: Fault(delay_s=0.02 if number % 2 else 0.0, jitter_s=0.002)
    path.proxy.cut()
    for _ in range(60):
        path.put(10)
        await asyncio.sleep(0.003)
    await path.check_equal()
    assert path.b.pairs.secondaries["A:g-B:g"].receiver.corrupt_frames == 0


async def test_flapping_link_leaves_no_tasks_behind(path: Path2) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(15):
        path.put(10)
        path.proxy.cut()
        await asyncio.sleep(0.02)
    await path.check_equal()
    await until(lambda: len(asyncio.all_tasks()) <= before + 4)


async def test_both_sides_killed_and_restarted_go_on(path: Path2) -> None:
    for round_number in range(4):
        path.put(50)
        await asyncio.sleep(0.01)
        site = (path.a, path.b)[round_number % 2]
        await site.crash()
        if site is path.b:
            path.put(50)
        await site.start()
        path.put(5)
    await path.check_equal()


async def test_sync_pair_survives_resets_without_losing_an_acknowledged_write(tmp_path: Path) -> None:
    path = Path2(tmp_path, 5)
    await path.start("sync")
    rng = random.Random(5)
    path.proxy.plan = lambda number: Fault(reset_after=rng.randrange(2000, 40_000))
    path.proxy.cut()
    last = 0
    for index in range(150):
        last = await path.a.write("v", index, b"%d" % index)
        assert path.b.group("g").last_origin >= last
    path.proxy.plan = lambda number: Fault()
    await caught_up(path.a, path.b, "g")
    assert await path.b.image("v") == await path.a.image("v")
    await path.stop()
