"""Peers that have the key and break a rule: what they sent once had an effect beyond their own pair."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest
from crc32c import crc32c

from controllerd.model.pair_state import PairEvent, PairState, Role
from controllerd.model.records import Kind, encode_header
from controllerd.replication.frames import Frame, encode_data_header
from controllerd.replication.links import Link
from controllerd.replication.messages import Accept, Pull
from controllerd.replication.pair_record import Mode, PairSpec, PairVolume
from controllerd.replication.secondary import SecondaryPair
from controllerd.storage.role_changes import RoleChanges
from tests.fuzz.stage import ATTACKER, BLOCK, SIZE, TARGET, Stage

_GENERATION: Final = 77
_KEY: Final = 1001
_LATEST: Final = (1 << 63) - 1


class _Primary:
    """X as the primary of groups at T. ``accept``, ``others``: what it answers to each PULL of group g, of others."""

    def __init__(self, stage: Stage, accept: Accept, **others: Accept) -> None:
        self.stage = stage
        self.pulls: list[Pull] = []
        self.links: list[Link] = []
        self._accepts = {"g": accept, **others}
        stage.attacker.on_request = self._requested

    async def start(self, mode: Mode) -> None:
        stage = self.stage
        await stage.attacker.listen()
        await stage.build(list(self._accepts))
        assert stage.target.life is not None
        for number, group in enumerate(self._accepts):
            order = PairSpec(
                ATTACKER, group, TARGET, group, (PairVolume("v", f"{group}-v", _KEY + number, SIZE),), mode=mode,
                domain="x", connections=1,
            )  # fmt: skip
            await stage.target.life.perform(stage.target.pairs.create(Role.SECONDARY, order))

    async def accepted(self, mode: Mode) -> None:
        """Start, and wait until T pulls group g on both links and has read the answer."""
        await self.start(mode)
        await self.stage.until(lambda: len(self.links) == 2, "T pulls")
        await asyncio.sleep(0.1)

    def secondary(self, group: str = "g") -> SecondaryPair:
        """T's side of a pair with X."""
        return self.stage.target.pairs.secondaries[f"{ATTACKER}:{group}-{TARGET}:{group}"]

    def _requested(self, link: Link, frame: Frame) -> None:
        pull = Pull.decode_untrusted(frame.payload)
        self.pulls.append(pull)
        self.links.append(link)
        self.stage.attacker.send(link, self._accepts[pull.group].encode())

    def record(self, sequence: int, time: int, incarnation: int = 1, key: int = _KEY) -> bytes:
        """A frame with one record."""
        data = bytes(BLOCK)
        raw = encode_header(
            Kind.WRITE, sequence=sequence, time=time, generation=_GENERATION, incarnation=incarnation, volume=key,
            offset=0, length=BLOCK, data_crc=crc32c(data),
        ) + data  # fmt: skip
        return encode_data_header(_GENERATION, sequence, 1, len(raw)) + raw


def _accept(generation: int = _GENERATION, time_source: str = "clock", start_seq: int = 0) -> Accept:
    return Accept(generation, start_seq, 0, time_source, start_seq, 1, False, 0, 0)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_records_beyond_the_credit_end_the_session(mode: Mode) -> None:
    """They were all kept in memory once the journal was full."""
    stage = Stage(mode, "cache")
    primary = _Primary(stage, _accept())

    async def scenario() -> None:
        await primary.accepted(mode)
        link = primary.links[-1]
        for sequence in range(1, 1001):
            stage.attacker.send(link, primary.record(sequence, 5))  # nothing of one time can be shown, and leave
        end_s = stage.loop.now_s + 2
        while stage.loop.now_s < end_s and not link.closed:
            await asyncio.sleep(0.001)
            stage.look()
        await asyncio.sleep(0.1)
        assert "credit" in primary.secondary().receiver.reason
        await stage.friends_are_well()

    stage.run(scenario())


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_time_at_the_end_of_all_times_is_not_given_to_other_groups(mode: Mode) -> None:
    """The writes of all other groups were then later than a peer takes, for ever."""
    stage = Stage(mode, "cache")
    primary = _Primary(stage, _accept())

    async def scenario() -> None:
        await primary.accepted(mode)
        stage.attacker.send(primary.links[-1], primary.record(1, _LATEST))
        group = stage.target.storage.groups["g"]
        await stage.until(lambda: group.durable_seq >= 1, "the record is journaled")
        await stage.friends_are_well()
        await stage.restart()
        await stage.friends_are_well()

    stage.run(scenario())


@pytest.mark.parametrize(
    "accept", [_accept(0), _accept(1 << 32), _accept(time_source=""), _accept(time_source="moon")], ids=str
)
def test_impossible_acceptance_is_refused_after_a_wait(accept: Accept) -> None:
    """Generation 0 was taken for a beginning again and again, each time with a checkpoint."""
    stage = Stage("async", "cache")
    primary = _Primary(stage, accept)

    async def scenario() -> None:
        await primary.start("async")
        await asyncio.sleep(3)
        pair = primary.secondary()
        assert not pair.record.generation
        assert "ACCEPT" in pair.receiver.reason
        assert len(primary.pulls) < 60
        await stage.friends_are_well()

    stage.run(scenario())


async def _journaled_runs(primary: _Primary) -> None:
    stage = primary.stage
    await primary.start("async")
    await stage.until(lambda: len(primary.links) == 2, "T pulls")
    await asyncio.sleep(0.1)
    for sequence, incarnation in ((1, 3), (2, 3), (3, 1)):
        stage.attacker.send(primary.links[-1], primary.record(sequence, sequence, incarnation))
    group = stage.target.storage.groups["g"]
    await stage.until(lambda: group.last_seq >= 2, "records are journaled")
    await asyncio.sleep(0.1)


def test_run_of_the_primary_that_was_over_is_refused() -> None:
    """The next start took the record for damage, and held the group."""
    stage = Stage("async", "cache")
    primary = _Primary(stage, _accept())

    async def scenario() -> None:
        await _journaled_runs(primary)
        pair = primary.secondary()
        assert "run 1 of X, after run 3" in pair.record.reason
        await stage.restart()
        assert stage.target.storage.groups["g"].describe_fault() is None
        assert stage.target.storage.groups["g"].last_seq == 2
        await stage.friends_are_well()

    stage.run(scenario())


@pytest.mark.parametrize("together", [False, True], ids=["one after the other", "together"])
def test_other_kind_of_write_times_than_the_domain_has_is_refused_with_nothing_kept(
    *, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group began where X said, the apply loop did not know, and ended with an error at the first record."""
    restart_group = RoleChanges.restart_group

    async def slowly(*args: Any, **facts: Any) -> None:
        await asyncio.sleep(0.1)
        await restart_group(*args, **facts)

    monkeypatch.setattr(RoleChanges, "restart_group", slowly)
    stage = Stage("async", "cache")
    primary = _Primary(stage, _accept(), k=_accept(time_source="sequence", start_seq=5))
    answer, waiting = stage.attacker.on_request, list[tuple[Link, Frame]]()

    def requested(link: Link, frame: Frame) -> None:
        waiting.append((link, frame))
        while not together or len(waiting) + len(primary.pulls) >= 2:
            if not waiting:
                return
            answer(*waiting.pop())

    stage.attacker.on_request = requested

    async def scenario() -> None:
        await primary.start("async")
        await stage.until(lambda: any(map(suspended, "gk")), "a pair is suspended")
        await asyncio.sleep(1)
        refused = "g" if suspended("g") else "k"
        assert "choose another domain" in primary.secondary(refused).record.reason
        for pull, link in zip(primary.pulls, primary.links, strict=True):
            if not link.closed:
                stage.attacker.send(link, primary.record(6, 6, key=_KEY + 1) if pull.group == "k" else b"")
        await asyncio.sleep(1)
        await stage.restart()
        pair = primary.secondary(refused)
        assert (pair.record.generation, pair.group.last_seq) == (0, 0)
        assert pair.domain.groups == ["g", "k"], "what it will bring is not known: it holds the others back"
        await stage.friends_are_well()

    def suspended(group: str) -> bool:
        return primary.secondary(group).record.state is PairState.PSUE

    stage.run(scenario())


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_suspended_pair_takes_no_records(mode: Mode) -> None:
    """A primary that went on sending changed what an operator had split off."""
    stage = Stage(mode, "cache")
    primary = _Primary(stage, _accept())

    async def scenario() -> None:
        await primary.start(mode)
        await stage.until(lambda: len(primary.links) == 2, "T pulls")
        assert stage.target.life is not None
        stage.target.life.call(primary.secondary().suspend, PairEvent.SPLIT, "by order")
        await stage.until(lambda: len(primary.links) > 2, "T pulls again")
        for _ in range(20):
            stage.attacker.send(primary.links[-1], primary.record(1, 5))
            await asyncio.sleep(0.05)
        pair = primary.secondary()
        assert pair.intake.next_seq == 1
        assert "suspended here" in pair.receiver.reason
        assert len(primary.pulls) < 60
        await stage.friends_are_well()

    stage.run(scenario())
