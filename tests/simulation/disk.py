"""Simulated disk: the file port of the storage layer, over memory that loses what was not synced.

Owns: for every file what programs read now, what is on the medium, and the changes in
between, in order; the same for names. `SimulatedDisk` outlives crashes; `boot` gives
the `Files` of one life of the machine or of the daemon.
Never: knows what is in the files.

What a reader would get wrong: a file's ``sync`` makes its content and size durable, not its
name. After a failed sync the changes can still be read, but no later sync writes
them (fsyncgate): only writing them again does.

Source: fault catalogue F3-F6, F10-F17.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from typing_extensions import Buffer

from controllerd.storage.io import File

SECTOR: Final = 512
"""Bytes that the medium writes wholly or not at all, except with `Loss.TORN`."""


class PowerCut(BaseException):
    """The machine or daemon stopped in the middle of this call; no code of it runs on."""


class Loss(enum.Enum):
    """What a crash leaves of the changes that were not synced."""

    KILL = "kill"
    """Only the daemon died: all of them stay readable, and stay unsynced."""
    NOTHING = "nothing"
    ALL = "all"
    PREFIX = "prefix"
    """Those before some moment, over all files."""
    SECTORS = "sectors"
    """Any sectors, each as it was at any moment."""
    TORN = "torn"
    """All but the last of each file, which ends in the middle of a sector, perhaps in garbage."""
    ZERO_TAIL = "zero-tail"
    """Sizes are kept; from some change on, new sectors read as zeros."""


POWER_LOSSES: Final = tuple(loss for loss in Loss if loss is not Loss.KILL)


@dataclass(slots=True)
class _Change:
    """Bytes put at ``offset`` of a file, which then has ``size`` bytes."""

    serial: int
    offset: int
    data: bytes
    size: int

    def put(self, image: bytearray) -> None:
        if len(image) < self.size:
            image.extend(bytes(self.size - len(image)))
        image[self.offset : self.offset + len(self.data)] = self.data


@dataclass(slots=True)
class _Content:
    """One file's bytes. ``seen`` = ``medium`` + ``dropped`` (by a failed sync) + ``changes``, by time."""

    seen: bytearray = field(default_factory=bytearray)
    medium: bytearray = field(default_factory=bytearray)
    changes: list[_Change] = field(default_factory=list)
    dropped: list[_Change] = field(default_factory=list)


@dataclass(slots=True)
class _Renaming:
    """A name was made (``content``) or removed (None)."""

    serial: int
    path: str
    content: _Content | None


@dataclass(slots=True)
class _Directory:
    """Names of the files in one directory; its own name is durable when `Files` has made it."""

    seen: dict[str, _Content] = field(default_factory=dict)
    medium: dict[str, _Content] = field(default_factory=dict)
    changes: list[_Renaming] = field(default_factory=list)


class Fault(Protocol):
    """Decides about one call: return to let it pass, raise `OSError` to fail it."""

    def __call__(self, operation: str, path: str, offset: int, length: int) -> None: ...


class SimulatedDisk:
    """Files and directories that survive crashes as far as they were synced.

    Args:
        rng: chooses delays, cache misses and what survives a crash.
        capacity: bytes that all files together may have; None: no limit.
    """

    def __init__(self, rng: random.Random, *, capacity: int | None = None) -> None:
        self.rng = rng
        self.capacity = capacity
        self.claims: set[tuple[int, str]] = set()
        self.directories: dict[str, _Directory] = {}
        self.fault: Fault | None = None
        self.calls = 0
        self.misses = 0.0
        """Probability that a read that may not wait finds nothing in the page cache."""
        self.sync_seconds = 0.0
        """Longest time that a sync or waiting read takes, in virtual seconds."""
        self.misdirect: dict[str, int] = {}
        """Path -> distance in bytes: the next write there lands so far off (F17)."""
        self.phantom: set[str] = set()
        """Paths where the next write is reported as done and lost (F17)."""
        self.spoil: Callable[[SimulatedFile, int, memoryview], None] | None = None
        """Called with the file, the offset and what was read there; it may change that (F15, F17)."""
        self.life = 0
        self.cut_in: int | None = None
        """Calls until the power is cut or the daemon killed; None: never."""
        self.down = False
        self.on_cut: Callable[[], None] = lambda: None
        self.interrupted: str | None = None
        """File in whose write the cut fell."""
        self.on_write: Callable[[str, bytes], None] = _unseen
        """Told (path, data) of every write that took place, before the writer goes on."""
        self.on_synced: Callable[[str, bytes], None] = _unseen
        """Told (path, data) of every such write when a sync has made it durable."""
        self._serial = 0

    # ---- life and death ------------------------------------------------------

    def boot(self) -> SimulatedFiles:
        """Return the files for a new life; those of earlier lives are dead."""
        self.life += 1
        self.down = False
        self.cut_in = None
        return SimulatedFiles(self, self.life)

    def make_directory(self, path: str) -> None:
        """Make a directory whose name is durable, as an installation does."""
        self.directories[path] = _Directory()

    def crash(self, loss: Loss) -> None:
        """End the present life, leaving what ``loss`` says."""
        self.life += 1
        self.down = True
        self.cut_in = None
        if loss is Loss.KILL:
            return
        horizon = self.rng.randint(0, self._serial)
        density = self.rng.choice((0.1, 0.5, 0.9))
        for directory in self.directories.values():
            contents = {id(content): content for content in [*directory.seen.values(), *directory.medium.values()]}
            for content in contents.values():
                content.seen = self._survivor(content, loss, horizon, density)
                content.medium = bytearray(content.seen)
                content.changes.clear()
                content.dropped.clear()
            for renaming in self._kept_names(directory.changes, loss, horizon):
                _rename(directory.medium, renaming)
            directory.seen = dict(directory.medium)
            directory.changes.clear()

    def _kept_names(self, changes: list[_Renaming], loss: Loss, horizon: int) -> list[_Renaming]:
        if loss is Loss.NOTHING:
            return []
        if loss is Loss.ALL:
            return changes
        if loss is Loss.PREFIX:
            return [change for change in changes if change.serial <= horizon]
        return changes[: self.rng.randint(0, len(changes))]  # a directory's changes keep their order

    def _survivor(self, content: _Content, loss: Loss, horizon: int, density: float) -> bytearray:
        image = bytearray(content.medium)
        changes = content.changes
        if loss is Loss.ALL:
            _put_all(image, changes)
        elif loss is Loss.PREFIX:
            _put_all(image, [change for change in changes if change.serial <= horizon])
        elif loss is Loss.SECTORS:
            self._put_some_sectors(image, content, density)
        elif loss is Loss.TORN and changes:
            _put_all(image, changes[:-1])
            self._put_torn(image, changes[-1])
        elif loss is Loss.ZERO_TAIL and changes:
            whole = self.rng.randint(0, len(changes))
            _put_all(image, changes[:whole])
            for change in changes[whole:]:
                size = len(image)
                fresh = max(size, change.offset + SECTOR - 1) // SECTOR * SECTOR
                zeros = min(len(change.data), max(0, change.offset + len(change.data) - fresh))
                _Change(0, change.offset + len(change.data) - zeros, bytes(zeros), change.size).put(image)
        return image

    def _put_some_sectors(self, image: bytearray, content: _Content, density: float) -> None:
        moving = bytearray(content.medium)
        size = len(image)
        for change in content.changes:
            change.put(moving)
            if self.rng.random() < density:
                size = len(moving)  # sizes change in order, contents do not
            if len(image) < len(moving):
                image.extend(bytes(len(moving) - len(image)))
            for start in range(change.offset // SECTOR * SECTOR, change.offset + len(change.data), SECTOR):
                if self.rng.random() < density:
                    image[start : start + SECTOR] = moving[start : start + SECTOR]
        del image[size:]

    def _put_torn(self, image: bytearray, change: _Change) -> None:
        cut = self.rng.randint(0, len(change.data))
        garbage = b""
        end = min(cut + -(change.offset + cut) % SECTOR, len(change.data))
        same = image[change.offset + cut : change.offset + end] == change.data[cut:end]
        if not same and self.rng.random() < 0.5:  # writing what is there already tears nothing
            garbage = self.rng.randbytes(end - cut)
        _Change(0, change.offset, change.data[:cut] + garbage, change.size).put(image)

    def evict(self) -> None:
        """Drop clean pages from the page cache: what a failed sync lost is no longer readable (F13)."""
        for directory in self.directories.values():
            for content in directory.seen.values():
                content.seen = bytearray(content.medium)
                _put_all(content.seen, content.changes)
                content.dropped.clear()

    def rot(self, path: str, offset: int, bit: int = 0) -> None:
        """Flip one bit at rest (F15, F16)."""
        content = self.content(path)
        for image in (content.seen, content.medium):
            if offset < len(image):
                image[offset] ^= 1 << bit

    def overwrite(self, path: str, offset: int, data: bytes) -> None:
        """Put at rest what was meant for another place (F17)."""
        content = self.content(path)
        for image in (content.seen, content.medium):
            image[offset : offset + len(data)] = data

    # ---- what files need -------------------------------------------------------

    def content(self, path: str) -> _Content:
        """Return the file at ``path`` as programs see it."""
        directory = self.directories.get(os.path.dirname(path))
        if directory is None or path not in directory.seen:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return directory.seen[path]

    def call(self, life: int, operation: str, path: str, offset: int = 0, length: int = 0) -> bool:
        """Count one call of a program; returns True when it is the one that the cut interrupts."""
        if life != self.life or self.down:
            raise PowerCut(operation)
        self.calls += 1
        if self.cut_in is not None:
            self.cut_in -= 1
            if self.cut_in <= 0:
                self.down = True
                self.on_cut()
                if operation != "write":
                    raise PowerCut(operation)
                self.interrupted = path
                return True
        if self.fault is not None:
            self.fault(operation, path, offset, length)
        return False

    def serial(self) -> int:
        """Return the number of the next change."""
        self._serial += 1
        return self._serial

    def change(self, content: _Content, offset: int, data: bytes, size: int = 0) -> None:
        """Change a file in the page cache.

        Raises:
            OSError: ENOSPC, the disk is full; the change is not made.
        """
        size = max(size, len(content.seen), offset + len(data) if data else 0)
        if self.capacity is not None and size > len(content.seen):
            used = sum(len(item.seen) for each in self.directories.values() for item in each.seen.values())
            if used + size - len(content.seen) > self.capacity:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        change = _Change(self.serial(), offset, data, size)
        change.put(content.seen)
        content.changes.append(change)


def _unseen(path: str, data: bytes) -> None:
    """Nobody watches."""


def _put_all(image: bytearray, changes: list[_Change]) -> None:
    for change in changes:
        change.put(image)


def _rename(names: dict[str, _Content], renaming: _Renaming) -> None:
    if renaming.content is None:
        names.pop(renaming.path, None)
    else:
        names[renaming.path] = renaming.content


class SimulatedFile:
    """An open file of one life."""

    def __init__(self, disk: SimulatedDisk, life: int, path: str, content: _Content) -> None:
        self.path = path
        self._disk = disk
        self._life = life
        self._content = content

    def read_nowait(self, buffer: memoryview, offset: int) -> bool:
        """See File; misses as often as the disk's ``misses`` says, and when it fails: the waiting read will say."""
        if self._disk.misses and self._disk.rng.random() < self._disk.misses:
            return False
        try:
            self.read_now(buffer, offset)
        except OSError:
            return False
        return True

    def read_now(self, buffer: memoryview, offset: int) -> None:
        """See File."""
        self._disk.call(self._life, "read", self.path, offset, len(buffer))
        data = self._content.seen[offset : offset + len(buffer)]
        if len(data) < len(buffer):
            raise OSError(errno.EIO, f"the file ends at byte {len(self._content.seen)}")
        buffer[:] = data
        if self._disk.spoil is not None:
            self._disk.spoil(self, offset, buffer)

    def peek(self, offset: int, length: int) -> bytes:
        """Return what a read would give, as far as it goes, without being one."""
        return bytes(self._content.seen[offset : offset + length])

    async def read(self, buffer: memoryview, offset: int) -> None:
        """See File; the content is that of some moment during the call."""
        await self._wait()
        self.read_now(buffer, offset)
        await self._wait()

    async def _wait(self) -> None:
        disk = self._disk
        await asyncio.sleep(disk.rng.random() * disk.sync_seconds if disk.sync_seconds else 0)

    def write(self, data: Buffer, offset: int) -> None:
        """See File."""
        self._write(bytes(data), offset)

    def write_vector(self, buffers: Sequence[Buffer], size: int, offset: int) -> None:
        """See File."""
        data = b"".join(buffers)
        assert len(data) == size
        self._write(data, offset)

    async def write_long(self, buffers: Sequence[Buffer], size: int, offset: int) -> None:
        """See File."""
        try:
            await self._wait()
        finally:
            self.write_vector(buffers, size, offset)

    def _write(self, data: bytes, offset: int) -> None:
        disk = self._disk
        if disk.call(self._life, "write", self.path, offset, len(data)):
            disk.change(self._content, offset, data[: disk.rng.randint(0, len(data))])
            raise PowerCut("write")
        if self.path in disk.phantom:
            disk.phantom.discard(self.path)
            return
        disk.change(self._content, offset + disk.misdirect.pop(self.path, 0), data)
        disk.on_write(self.path, data)

    async def sync(self) -> None:
        """See File; covers what was written before the call, no more."""
        before = self._disk.serial()
        await self._wait()
        self._sync(before)
        await self._wait()

    def begin_sync(self, done: Callable[[OSError | None], None]) -> None:
        """See File."""

        def ended(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if not task.cancelled() and (error is None or isinstance(error, OSError)):  # else the power is gone
                done(error)

        asyncio.get_running_loop().create_task(self.sync()).add_done_callback(ended)

    def sync_now(self) -> None:
        """See File."""
        self._sync(self._disk.serial())

    def _sync(self, before: int) -> None:
        content = self._content
        covered = [change for change in content.changes if change.serial < before]
        try:
            self._disk.call(self._life, "sync", self.path)
        except OSError:
            content.dropped += covered
            del content.changes[: len(covered)]
            raise
        _put_all(content.medium, covered)
        del content.changes[: len(covered)]
        for change in covered:
            self._disk.on_synced(self.path, change.data)

    def allocate(self, size: int) -> None:
        """See File."""
        self._disk.call(self._life, "allocate", self.path, 0, size)
        self._disk.change(self._content, 0, b"", size)

    def zero(self, offset: int, length: int) -> None:
        """See File."""
        self._disk.call(self._life, "zero", self.path, offset, length)
        length = min(length, max(0, len(self._content.seen) - offset))
        # Zeroing what is zero changes nothing, unless a failed sync lost the zeros on their way to the medium.
        if self._content.dropped or any(memoryview(self._content.seen)[offset : offset + length]):
            self._disk.change(self._content, offset, bytes(length))

    def is_blank(self) -> bool:
        """See File."""
        self._disk.call(self._life, "stat", self.path)
        return not any(self._content.seen)

    def size(self) -> int:
        """See File."""
        self._disk.call(self._life, "stat", self.path)
        return len(self._content.seen)

    def claim(self) -> bool:
        """See File; names are never links here."""
        key = (self._life, self.path)
        claimed = key not in self._disk.claims
        self._disk.claims.add(key)
        return claimed

    def close(self) -> None:
        """See File."""
        self._disk.claims.discard((self._life, self.path))


class SimulatedFiles:
    """`Files` of one life."""

    def __init__(self, disk: SimulatedDisk, life: int) -> None:
        self._disk = disk
        self._life = life

    def open(self, path: str, *, create: bool = False) -> File:
        """See Files."""
        disk = self._disk
        disk.call(self._life, "open", path)
        if create:
            directory = self._directory(os.path.dirname(path))
            if path not in directory.seen:
                content = _Content()
                directory.seen[path] = content
                directory.changes.append(_Renaming(disk.serial(), path, content))
        return SimulatedFile(disk, self._life, path, disk.content(path))

    def _directory(self, path: str) -> _Directory:
        return self._disk.directories.setdefault(path, _Directory())

    def exists(self, path: str) -> bool:
        """See Files."""
        self._disk.call(self._life, "stat", path)
        directory = self._disk.directories.get(os.path.dirname(path))
        return path in self._disk.directories or (directory is not None and path in directory.seen)

    def resolve(self, path: str) -> str:
        """See Files; there are no links here."""
        return os.path.normpath(path)

    def room(self, path: str) -> int:
        """See Files."""
        return 1 << 60 if self._disk.capacity is None else self._disk.capacity

    def names(self, directory: str) -> list[str]:
        """See Files."""
        self._disk.call(self._life, "list", directory)
        prefix = directory + "/"
        below = [path for path in self._disk.directories if path.startswith(prefix) and "/" not in path[len(prefix) :]]
        return sorted(path[len(prefix) :] for path in [*self._directory(directory).seen, *below])

    def remove(self, path: str) -> None:
        """See Files."""
        self._disk.call(self._life, "remove", path)
        directory = self._directory(os.path.dirname(path))
        if directory.seen.pop(path, None) is not None:
            directory.changes.append(_Renaming(self._disk.serial(), path, None))

    def sync_directory(self, directory: str) -> None:
        """See Files; makes the names of files in it durable."""
        self._disk.call(self._life, "sync-directory", directory)
        entry = self._directory(directory)
        for renaming in entry.changes:
            _rename(entry.medium, renaming)
        entry.changes.clear()

    def close(self) -> None:
        """See Files."""
