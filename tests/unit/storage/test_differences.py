"""What a copy may not have, against every record that was ever written (I12)."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from controllerd.storage import differences
from controllerd.storage.differences import SHIFT, Differences
from controllerd.storage.group import Group
from controllerd.storage.system import StorageSystem
from tests.unit.storage.helpers import SIZE, failing, live, make_machine, put

GRANULE = 1 << SHIFT
COUNT = SIZE // GRANULE


class Copy:
    """A copy as a pair has it: it says what it has, and the journal is kept above that. ``written``: all records."""

    def __init__(self, system: StorageSystem) -> None:
        self.system = system
        self.volume = system.volume("v0")
        self.group: Group = self.volume.group
        self.has: int | None = self.group.last_seq
        self.group.set_retention("copy", self.group.last_seq)
        self.found = Differences(self.group, "copy", lambda: self.has)
        self.written: list[tuple[int, set[int]]] = []

    def change(self, kind: str, offset: int, length: int) -> None:
        length = min(length, SIZE - offset)
        if kind == "write":
            put(self.system, "v0", offset, bytes(length))
        else:
            self.group.stage_zeroes(self.volume, offset, length, trim=kind == "trim")
            self.group.commit()
        granules = set(range(offset >> SHIFT, (offset + length - 1 >> SHIFT) + 1))
        self.written.append((self.group.last_seq, granules))

    def acknowledge(self, sequence: int) -> None:
        self.has = sequence
        self.group.set_retention("copy", sequence)

    def freeze(self) -> None:
        """As a suspension does: the journal is not kept for the copy any more."""
        self.found.freeze()
        self.group.set_retention("copy", None)

    async def checkpoint(self) -> None:
        await self.system.checkpointer.checkpoint()

    def missing(self) -> set[int]:
        """What the copy has not got."""
        assert self.has is not None
        return set[int]().union(*(granules for sequence, granules in self.written if sequence > self.has))

    def known(self) -> bool:
        return self.volume.differences_known

    def shown(self) -> set[int]:
        """What is said to differ now."""
        marked, position = set[int](), 0
        for length, differs in self.volume.differing(0, SIZE):
            assert length % GRANULE == 0
            if differs:
                marked |= set(range(position >> SHIFT, position + length >> SHIFT))
            position += length
        assert position == SIZE
        return marked

    async def ask(self) -> set[int]:
        """As a host asks."""
        if not self.known():
            await self.volume.learn_differences()
        return self.shown()


ALL = set(range(COUNT))
offsets = st.integers(0, SIZE - 1)
lengths = st.sampled_from((1, 4096, GRANULE, 5 * GRANULE, SIZE))
steps = st.one_of(
    st.tuples(st.sampled_from(("write", "trim", "zero")), offsets, lengths),
    st.tuples(st.just("acknowledge"), st.integers(0, 100), st.just(0)),
    st.tuples(st.sampled_from(("ask", "checkpoint", "yield")), st.just(0), st.just(0)),
)


def test_only_what_is_written_differs_until_the_copy_has_it() -> None:
    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        assert await copy.ask() == set()
        copy.change("write", 3 * GRANULE + 5, 1)
        copy.change("trim", 8 * GRANULE - 1, 2)
        assert not copy.known()
        assert await copy.ask() == {3, 7, 8}
        assert copy.volume.differing(3 * GRANULE + 4096, GRANULE) == [(GRANULE - 4096, True), (4096, False)]
        copy.acknowledge(copy.group.last_seq)
        assert copy.known()
        assert await copy.ask() == set()

    live(make_machine(), scenario)


def test_a_copy_that_is_always_behind_does_not_gather_differences() -> None:
    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        for number in range(4 * COUNT):
            copy.change("write", number % COUNT * GRANULE, 4096)
            assert len(await copy.ask()) <= 4
            copy.acknowledge(copy.group.last_seq - 1)

    live(make_machine(), scenario)


def test_two_who_ask_together_get_what_each_asked_for() -> None:
    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        copy.change("write", 0, 8 * GRANULE)

        async def later() -> set[int]:
            copy.change("write", 12 * GRANULE, 5 * 4096)
            return await copy.ask()

        one, two = await asyncio.gather(copy.ask(), later())
        assert set(range(8)) <= one <= two == {*range(8), 12}

    live(make_machine(), scenario)


def test_frozen_differences_are_all_there_when_the_journal_is_gone() -> None:
    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        for granule in (1, 4, 9):
            copy.change("write", granule * GRANULE, 4096)
        copy.acknowledge(copy.group.last_seq - 2)
        copy.freeze()
        copy.change("write", 12 * GRANULE, 4096)
        assert await copy.ask() == {4, 9, 12}
        for _ in range(30):
            copy.change("write", 0, SIZE // 2)
            await copy.checkpoint()
        assert copy.group.journal.first > copy.written[4][0]
        assert await copy.ask() == {*range(8), 9, 12}
        assert copy.known()

    live(make_machine(), scenario)


def test_the_journal_is_kept_until_frozen_differences_are_read() -> None:
    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        copy.change("write", 12 * GRANULE, 4096)
        for _ in range(16):
            copy.change("write", 0, SIZE // 2)
            copy.change("write", 0, SIZE // 2)
            await asyncio.sleep(0)
        copy.freeze()
        await copy.checkpoint()
        await copy.checkpoint()
        assert await copy.ask() == {*range(8), 12}
        await asyncio.sleep(0)
        assert copy.group.kept_through() is None

    live(make_machine(cache=64 << 20), scenario)


def test_everything_differs_from_a_copy_of_which_nothing_is_known() -> None:
    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        copy.has = None
        assert await copy.ask() == ALL
        copy.has = copy.group.last_seq
        assert await copy.ask() == set()
        copy.has = None
        copy.freeze()
        copy.has = copy.group.last_seq
        assert await copy.ask() == ALL
        copy.found.close()
        assert not copy.volume.copied
        assert await copy.ask() == ALL, "a session may still ask when the pair is deleted"

    live(make_machine(), scenario)


def test_a_copy_that_lost_something_differs_by_that() -> None:
    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        start = copy.group.last_seq
        copy.change("write", 2 * GRANULE, 4096)
        copy.change("write", 5 * GRANULE, 4096)
        copy.has = copy.group.last_seq
        assert await copy.ask() == set()
        copy.has = start + 1
        assert copy.shown() == ALL or not copy.known()
        assert await copy.ask() == {5}

    live(make_machine(), scenario)


def test_everything_differs_when_the_journal_cannot_be_read() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        copy.change("write", 2 * GRANULE, 4096)
        machine.disk.fault = failing(".seg", "read")
        assert await copy.ask() == ALL
        machine.disk.fault = None
        assert await copy.ask() == {2}
        copy.change("write", 3 * GRANULE, 4096)
        machine.disk.fault = failing(".seg", "read")
        copy.freeze()
        assert await copy.ask() == ALL
        await asyncio.sleep(differences.LEARN_S)
        machine.disk.fault = None
        assert await copy.ask() == ALL, "the journal was not kept for longer"
        assert copy.group.kept_through() is None

    live(machine, scenario)


def test_everything_differs_when_the_journal_is_not_kept() -> None:
    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        copy.group.set_retention("copy", None)
        for _ in range(30):
            copy.change("write", 0, SIZE // 2)
            await copy.checkpoint()
        assert await copy.ask() == ALL

    live(make_machine(), scenario)


def test_reading_much_leaves_turns_to_others() -> None:
    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        for number in range(9000):
            copy.group.stage_zeroes(copy.volume, number % COUNT * GRANULE, GRANULE, trim=True)
        copy.group.commit()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count())
        assert await copy.ask() == ALL
        counting.cancel()
        assert turns >= 4

    live(make_machine(), scenario)


@settings(max_examples=40, deadline=None)  # last: what it finds takes minutes to shrink
@given(before=st.lists(steps, max_size=40), after=st.lists(steps, max_size=20))
def test_nothing_that_differs_is_ever_called_equal(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    async def scenario(system: StorageSystem) -> None:
        copy = Copy(system)
        asked = copy.group.last_seq
        frozen = False

        async def step(kind: str, number: int, length: int) -> None:
            nonlocal asked
            if kind == "ask":
                passed = not frozen and copy.has is not None and copy.has >= asked
                shown = await copy.ask()
                assert shown >= copy.missing()
                if passed:
                    assert shown == copy.missing(), "what was read before is forgotten, so that nothing is too much"
                asked = copy.group.last_seq
            elif kind == "checkpoint":
                await copy.checkpoint()
            elif kind == "yield":
                await asyncio.sleep(0)
            elif kind != "acknowledge":
                copy.change(kind, number, length)
            elif not frozen:
                assert copy.has is not None
                copy.acknowledge(copy.has + (copy.group.last_seq - copy.has) * number // 100)

        for kind, number, length in before:
            await step(kind, number, length)
        copy.freeze()
        frozen = True
        for kind, number, length in after:
            await step(kind, number, length)
        await copy.checkpoint()
        assert copy.missing() <= await copy.ask()

    live(make_machine(), scenario)
