"""A volume and its group in memory, with the shape of controllerd.targets.nbd.ports.

Owns: a plain image, what was staged and committed, and switches for every way in which storage can hold up or refuse
a request.
Never: copies what the storage layer does inside; it keeps the contract only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controllerd.model.access import Client, Grant, Rules, grant
from controllerd.model.errors import ReadOnly, RemoteCopyError
from controllerd.targets.nbd.ports import Waiter


class FakeGroup:
    """Commits into the image of its volumes; acknowledges at once unless told to hold."""

    def __init__(self) -> None:
        self.last_seq = 0
        self.complete_seq = 0
        self._flushed_seq = 0
        self.accepting = True
        self.hold_complete = False
        self.hold_flush = False
        self.commits = 0
        self.image_kept = True
        """False: contents do not matter, and a volume's size may be larger than its image."""
        self.stage_error: RemoteCopyError | None = None
        self.commit_error: RemoteCopyError | None = None
        self.carried: list[int | None] = []
        self.zeroed: list[tuple[int, int, bool, bool]] = []
        self._next = 0
        self._staged: list[tuple[FakeVolume, int, memoryview | None, int]] = []
        self._complete: list[tuple[int, Waiter]] = []
        self._flushed: list[tuple[int, Waiter]] = []
        self._accept: list[Callable[[], None]] = []

    def _stage(self, volume: FakeVolume, offset: int, data: memoryview | None, length: int) -> int:
        if self.stage_error is not None:
            raise self.stage_error
        if not volume.writable:
            raise ReadOnly(f"volume {volume.name} is read-only")
        assert length > 0
        assert 0 <= offset <= volume.size - length
        self._next += 1
        self._staged.append((volume, offset, data, length))
        return self._next

    def stage_write(self, volume: Any, offset: int, data: memoryview, carried: int | None = None) -> int:
        sequence = self._stage(volume, offset, data, len(data))
        self.carried.append(carried)
        return sequence

    def stage_zeroes(
        self, volume: Any, offset: int, length: int, *, trim: bool, no_hole: bool = False, carried: int | None = None
    ) -> int:
        sequence = self._stage(volume, offset, None, length)
        self.zeroed.append((offset, length, trim, no_hole))
        return sequence

    def commit(self) -> None:
        staged, self._staged = self._staged, []
        if not staged:
            return
        if self.commit_error is not None:
            self._next = self.last_seq
            raise self.commit_error
        self.commits += 1
        self.last_seq = self._next
        for volume, offset, data, length in staged:
            volume.kept.append((offset, data))
            if not self.image_kept:
                continue
            volume.image[offset : offset + length] = bytes(length) if data is None else data
        if not self.hold_complete:
            self.complete_seq = self.last_seq

    def when_complete(self, sequence: int, waiter: Waiter, /) -> None:
        self._complete.append((sequence, waiter))
        if not self.hold_complete:
            self.complete(sequence)

    def when_flushed(self, sequence: int, waiter: Waiter, /) -> None:
        self._flushed.append((sequence, waiter))
        if not self.hold_flush or sequence <= self._flushed_seq:
            self.flush(sequence)

    def when_accepting(self, waiter: Callable[[], None], /) -> None:
        if self.accepting:
            waiter()
        else:
            self._accept.append(waiter)

    # ---- what tests do to it -----------------------------------------------------

    def complete(self, sequence: int, error: RemoteCopyError | None = None) -> None:
        """Acknowledge everything up to ``sequence``."""
        self.complete_seq = max(self.complete_seq, sequence)
        waiting, self._complete = self._complete, []
        for number, waiter in waiting:
            if number <= sequence:
                waiter(error)
            else:
                self._complete.append((number, waiter))

    def flush(self, sequence: int, error: RemoteCopyError | None = None) -> None:
        """Make everything up to ``sequence`` durable."""
        self._flushed_seq = max(self._flushed_seq, sequence)
        waiting, self._flushed = self._flushed, []
        for number, waiter in waiting:
            if number <= sequence:
                waiter(error)
            else:
                self._flushed.append((number, waiter))

    def accept(self) -> None:
        """Take writes again."""
        self.accepting = True
        waiting, self._accept = self._accept, []
        for waiter in waiting:
            waiter()


class FakeVolume:
    """An image in memory. ``cold``: reads do not find their data at once."""

    def __init__(self, name: str = "vol", size: int = 1 << 20, group: FakeGroup | None = None) -> None:
        self.name = name
        self.size = size
        self.block_size = 4096
        self.description = f"volume {name}"
        self.sessions: set[Any] = set()
        self.group = group or FakeGroup()
        self.writable = True
        self.visible = True
        self.allow: Rules = None
        self.image = bytearray(size)
        self.cold = False
        self.read_error: RemoteCopyError | None = None
        self.kept: list[tuple[int, memoryview | None]] = []
        """What storage would keep in its cache: the views it was given."""
        self.sparse = False
        """Whether zeros are known to be such."""
        self.holes: list[tuple[int, bool]] | None = None
        self.copied = False
        self.differences_known = True
        self.changed: list[tuple[int, bool]] = []

    def grant(self, client: Client) -> Grant:
        return grant(self.allow, client)

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        if self.read_error is not None:
            raise self.read_error
        if self.cold:
            return False
        buffer[:] = self.image[offset : offset + len(buffer)]
        return True

    async def read(self, buffer: memoryview, offset: int) -> None:
        if self.read_error is not None:
            raise self.read_error
        buffer[:] = self.image[offset : offset + len(buffer)]

    def is_hole(self, offset: int, length: int) -> bool:
        return self.sparse and self.read_error is None and not any(self.image[offset : offset + length])

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        if self.holes is not None:
            return self.holes
        return [(length, False)]

    async def learn_differences(self) -> None:
        self.differences_known = True

    def differing(self, offset: int, length: int) -> list[tuple[int, bool]]:
        assert self.differences_known
        return self.changed or [(length, False)]


def vast_volume(size: int) -> FakeVolume:
    """Return a volume of any size whose contents do not matter."""
    volume = FakeVolume()
    volume.size = size
    volume.group.image_kept = False
    return volume


class FakeExports:
    """A table of fake volumes."""

    def __init__(self, *volumes: FakeVolume) -> None:
        self._volumes = {volume.name: volume for volume in volumes}

    def lookup(self, name: str) -> FakeVolume | None:
        return self._volumes.get(name)

    def names(self) -> list[Any]:
        return list(self._volumes.values())
