"""What is said to be missing at a secondary: host writes and their bytes, or "not known" (I13, I14)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controllerd.model.pair_state import PairState
from controllerd.replication import secondary
from controllerd.replication.settings import Endpoint, PeerSettings
from controllerd.replication.status import PairStatus
from controllerd.replication.takeover_report import TakeoverGroup
from tests.integration.transfer_proxy import Proxy
from tests.integration.transfer_site import BLOCK, MIB, Site, caught_up, connect, pair, until

IDENTITY = "A:g-B:g"
SMALL = {"journal_bytes": 16 * MIB, "segment_bytes": 4 * MIB}
WRITE = 64 << 10


class Two:
    """A primary A and a secondary B of one group, whose connection can be cut."""

    def __init__(self, directory: Path) -> None:
        self.a = Site("A", directory / "A", storage=SMALL)
        self.b = Site("B", directory / "B", storage=SMALL)
        self.proxy = Proxy(lambda: self.a.port)

    async def start(self, **options: Any) -> Two:
        await self.proxy.start()
        for site in (self.a, self.b):
            await site.start()
            site.make({"g": ["v"]})
        connect(self.a, self.b)
        self.b.peers["A"] = PeerSettings("A", Endpoint("127.0.0.1", self.proxy.port))
        await pair(self.a, "g", self.b, **options)
        return self

    async def stop(self) -> None:
        await self.a.stop()
        await self.b.stop()
        await self.proxy.stop()

    def cut(self) -> None:
        self.proxy.refusing = True
        self.proxy.cut()

    def join(self) -> None:
        self.proxy.refusing = False

    def deaf(self) -> None:
        """From here on nothing that arrives is taken, as if it was still under way."""
        self.b.pairs.secondaries[IDENTITY].intake.take_untrusted = lambda frame, generation: None  # type: ignore[method-assign]

    def at(self, site: Site) -> PairStatus:
        return site.pairs.status()[0]

    @property
    def foreseen(self) -> TakeoverGroup:
        return self.b.pairs.preview().groups[0]

    async def write_much(self, size: int) -> int:
        """Write ``size`` bytes as a target does; returns how many writes that were."""
        group, volume = self.a.group("g"), self.a.volume("v")
        for index in range(size // WRITE):
            while not group.accepting:  # noqa: ASYNC110  # as short as it can be
                await asyncio.sleep(0.001)
            group.stage_write(volume, index % 32 * WRITE, memoryview(bytes([index % 255 + 1]) * WRITE))
            group.commit()
            if index % 16 == 0:
                await asyncio.sleep(0.005)
        return size // WRITE


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    found = await Two(tmp_path).start()
    yield found
    await found.stop()


async def test_notice_of_a_suspension_says_what_will_never_come(two: Two) -> None:
    a, b = two.a, two.b
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    two.deaf()
    written = await two.write_much(24 * MIB)
    await until(lambda: two.at(b).state == PairState.PSUE)
    found = two.foreseen
    assert found.missing_writes is not None
    assert found.missing_bytes is not None
    assert 100 < found.missing_writes <= written
    assert found.missing_bytes == found.missing_writes * WRITE
    answer = b.pairs.preview()
    assert answer.rpo_known_s is not None
    assert answer.rpo_known_s > 0


async def test_refusal_says_what_will_never_come(two: Two) -> None:
    a, b = two.a, two.b
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    two.cut()
    written = await two.write_much(24 * MIB)
    await until(lambda: two.at(a).state == PairState.PSUE)
    before = two.foreseen.unknown_since
    two.join()
    await until(lambda: two.at(b).state == PairState.PSUE)
    found = two.foreseen
    assert (found.missing_writes, found.missing_bytes) == (written, written * WRITE)
    assert abs(found.unknown_since - before) < 10**8, "a refusal is no heartbeat (I14)"
    assert found.primary_seq is not None
    await b.crash()
    await b.start()
    assert two.foreseen.missing_writes in (None, written)


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_secondary_suspended_without_a_word_of_the_primary_knows_nothing(tmp_path: Path, mode: str) -> None:
    two = await Two(tmp_path).start(mode=mode, sync_timeout_s=0.2)
    a, b = two.a, two.b
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    two.cut()
    await b.pairs.suspend(IDENTITY)
    report = b.pairs.preview()
    assert (report.groups[0].missing_writes, report.groups[0].missing_bytes) == (None, None)
    assert (report.rpo_known_s, report.rpo_s) == (None, None)
    assert (two.at(b).missing_writes, two.at(b).lag_bytes) == (None, None)
    for index in range(3):  # the first one waits for the mirror
        await a.write("v", 1 + index, b"alone")
    two.join()
    await until(lambda: two.at(b).missing_writes is not None)
    assert (two.at(b).missing_writes, two.at(b).missing_bytes) == (3, 3 * BLOCK)
    done = (await b.pairs.takeover()).groups[0]
    assert (done.missing_writes, done.missing_bytes) == (3, 3 * BLOCK)
    await two.stop()


async def test_ticks_are_no_missing_writes(two: Two) -> None:
    a, b = two.a, two.b
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    await until(lambda: two.at(a).lag_bytes == 0)
    two.deaf()
    before = a.group("g").last_seq
    for time in range(10):
        a.group("g").stage_tick(a.group("g").last_time + time)
        a.group("g").commit()
    contact = b.pairs.secondaries[IDENTITY].contact
    await until(lambda: contact.beat is not None and contact.beat.last_seq >= before + 10)
    for status in (two.at(a), two.at(b)):
        assert (status.missing_writes, status.missing_bytes, status.lag_bytes) == (0, 0, 0)
    assert two.foreseen.missing_writes == 0
    a.put("v", 1, b"two")
    last = a.group("g").last_seq
    await until(lambda: contact.beat is not None and contact.beat.last_seq >= last)
    for status in (two.at(a), two.at(b)):
        assert (status.missing_writes, status.missing_bytes, status.lag_bytes) == (1, BLOCK, BLOCK)


async def test_bytes_fit_the_writes_after_a_session_that_began_between_two_heartbeats(two: Two) -> None:
    a, b = two.a, two.b
    await two.write_much(4 * MIB)  # of another size, so that an average over all would be wrong
    await caught_up(a, b, "g")
    two.cut()
    await until(lambda: not two.at(b).connected)
    for index in range(40):
        a.put("v", index, b"small")
    two.join()
    await caught_up(a, b, "g")
    two.deaf()
    for index in range(82):
        a.put("v", index, b"small")
    last = a.group("g").last_seq
    contact = b.pairs.secondaries[IDENTITY].contact
    await until(lambda: contact.beat is not None and contact.beat.last_seq >= last)
    assert (two.foreseen.missing_writes, two.foreseen.missing_bytes) == (82, 82 * BLOCK)


async def test_what_is_missing_is_known_after_a_restart_of_the_secondary(two: Two) -> None:
    a, b = two.a, two.b
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    two.deaf()
    for index in range(5):
        a.put("v", index, b"missing")
    last = a.group("g").last_seq
    contact = b.pairs.secondaries[IDENTITY].contact
    await until(lambda: contact.beat is not None and contact.beat.last_seq >= last)
    two.cut()
    await b.pairs._kept.finish()
    await b.crash()
    await b.start()
    assert (two.foreseen.missing_writes, two.foreseen.missing_bytes) == (5, 5 * BLOCK)


async def test_lag_of_a_suspended_pair_does_not_shrink(two: Two) -> None:
    a, b = two.a, two.b
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    await until(lambda: two.at(a).lag_bytes == 0)
    two.cut()
    await until(lambda: not two.at(a).connected)
    written = 0
    for _ in range(3):
        written += await two.write_much(12 * MIB)
        for _ in range(300):  # more than are remembered
            a.pairs.primaries[IDENTITY].sender.heartbeat()
        status = two.at(a)
        assert (status.missing_writes, status.lag_bytes) == (written, written * WRITE)
        assert status.missing_bytes == status.lag_bytes
    assert two.at(a).state == PairState.PSUE


@pytest.mark.parametrize("restart", [False, True])
async def test_divergence_of_writes_that_are_trimmed_is_counted_or_said_to_be_unknown(two: Two, restart: bool) -> None:
    a, b = two.a, two.b
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    two.cut()
    written = await two.write_much(36 * MIB)
    assert two.at(a).state == PairState.PSUE
    await b.pairs.takeover()
    if restart:
        await a.crash()
        await a.start()
    two.join()
    record = b.pairs.secondaries[IDENTITY].record
    await until(lambda: record.fence is None)
    for site in (a, b):
        status = two.at(site)
        assert status.diverged_writes is not None
        if restart:
            assert status.diverged_writes >= written
            assert status.diverged_bytes is None
            assert "of unknown size" in status.reason
        else:
            assert (status.diverged_writes, status.diverged_bytes) == (written, written * WRITE)
            assert f"diverged: {written} writes, 36 MiB" in status.reason
    assert not restart or two.at(a).lag_bytes is None, "nothing of what the secondary had is known any more"


async def test_own_journal_proves_more_than_the_kept_heartbeat(two: Two) -> None:
    a, b = two.a, two.b
    contact = b.pairs.secondaries[IDENTITY].contact
    await until(lambda: contact.beat is not None)
    old = contact.beat
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    two.cut()
    await until(lambda: not two.at(b).connected)
    contact.beat = old
    status, found = two.at(b), two.foreseen
    for name in ("seq", "time"):
        assert getattr(status.written, name) >= getattr(status.arrived, name)
    assert found.primary_seq is not None
    assert found.primary_time is not None
    assert found.primary_seq >= found.cut_seq
    assert found.primary_time >= found.cut_time


async def test_primary_that_went_on_alone_is_asked_again(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = two.a, two.b
    monkeypatch.setattr(secondary, "ASK_S", 0.3)
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    await a.pairs.suspend(IDENTITY)
    await until(lambda: two.at(b).state == PairState.PSUS)
    assert (two.foreseen.missing_writes, b.pairs.preview().rpo_known_s) == (None, None)
    for index in range(7):
        await a.write("v", index, b"alone")
    await until(lambda: two.foreseen.missing_writes == 7)
    assert two.foreseen.missing_bytes == 7 * BLOCK
    two.cut()
    await asyncio.sleep(0.5)
    assert two.foreseen.missing_writes == 7, "what it told before still holds"
