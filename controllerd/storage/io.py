"""File port: everything the storage layer does to files goes through here.

Owns: opening, reading, writing, syncing and preallocating files.
Never: knows what is in them, retries a failed sync, or keeps data back.

The daemon uses `SystemFiles`; the simulator gives its own `Files` with a disk that
can lose what was not synced (architecture §7). A write that returns is in the
kernel's page cache: it survives the daemon, not the machine, until ``sync`` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from typing_extensions import Buffer

T = TypeVar("T")

IOV_MAX: Final = 1024
_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01
_ZERO_RANGE_KEEP_SIZE: Final = 0x10 | 0x01
CALL_BYTES: Final = 256 << 10
"""Written in one call at most. The page cache takes a longer piece in folios of up to 2 MiB, and ext4 then looks at all
512 blocks of such a folio for every small write to it: 9 us instead of 2.5 us for 4 KiB (Linux 6.18)."""
ZEROES: Final = memoryview(bytes(CALL_BYTES))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class File(Protocol):
    """An open file. Offsets and lengths are in bytes; failures are `OSError`."""

    path: str

    def read_nowait(self, buffer: memoryview, offset: int) -> bool:
        """Fill ``buffer`` from the page cache; False when that would wait for the disk."""

    def read_now(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``, waiting for the disk; OSError beyond the end of the file."""

    async def read(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` without holding up the loop; OSError beyond the end of the file."""

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data``."""

    def write_vector(self, buffers: Sequence[Buffer], size: int, offset: int) -> None:
        """Write at most `IOV_MAX` buffers, ``size`` bytes together, back to back."""

    async def write_long(self, buffers: Sequence[Buffer], size: int, offset: int) -> None:
        """`write_vector` without holding up the loop. Cancelled, it still ends only when nothing is being written."""

    async def sync(self) -> None:
        """Return when everything written so far survives power loss."""

    def begin_sync(self, done: Callable[[OSError | None], None]) -> None:
        """Begin a `sync`; ``done`` is called by the loop when it ended, with the error if it failed."""

    def sync_now(self) -> None:
        """`sync` that holds up the loop: for rare orders and recovery."""

    def allocate(self, size: int) -> None:
        """Make sure that ``size`` bytes exist and that writing them needs no more space."""

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, giving its space back where the file system can."""

    def is_blank(self) -> bool:
        """Whether nothing was ever written to the file, as far as the file system knows."""

    def size(self) -> int:
        """Size in bytes, of a raw block device too."""

    def claim(self) -> bool:
        """Lock the file until it is closed; False: somebody else has it, under whatever name."""

    def close(self) -> None:
        """Close; nothing is synced."""


class Files(Protocol):
    """Where files come from."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing; ``create`` makes a missing file, and missing directories durably."""

    def exists(self, path: str) -> bool:
        """Whether there is something at ``path``."""

    def names(self, directory: str) -> list[str]:
        """Sorted names in ``directory``, which is durably made when missing."""

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""

    def resolve(self, path: str) -> str:
        """The path without links and dots."""

    def room(self, path: str) -> int:
        """Bytes that the file system where ``path`` is or would be has left."""

    def sync_directory(self, directory: str) -> None:
        """Make created and removed names durable."""

    def close(self) -> None:
        """Give back the threads."""


class Threads:
    """Threads for calls that wait for a disk.

    What a flush costs is mostly the way to a thread and back: here that is one queue, without the futures, locks and
    tasks of an executor.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def begin(self, call: Callable[[], T], done: Callable[[T], None]) -> None:
        """Let a thread do ``call``, which must not raise; the loop calls ``done`` with what it returned."""
        call_soon = asyncio.get_running_loop().call_soon_threadsafe

        def job() -> None:
            result = call()
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                call_soon(done, result)

        if len(self._threads) < self._count:
            thread = threading.Thread(target=self._work, name="storage-io", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)

    def start(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Let a thread do ``call``; the future takes what it returns or raises. It cannot be stopped."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def attempt() -> Callable[[], None]:
            try:
                result = call()
            except Exception as error:
                return partial(future.set_exception, error)
            return partial(future.set_result, result)

        self.begin(attempt, lambda tell: None if future.cancelled() else tell())
        return future

    async def run(self, call: Callable[[], T]) -> T:
        """Let a thread do ``call`` and return what it returns. Cancelled, it ends only when the thread is done.

        For calls that change something: whoever goes on may change the same place, and a late call would undo that.
        """
        work = self.start(call)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            while not work.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            raise

    def _work(self) -> None:
        get = self._jobs.get
        while (job := get()) is not None:
            job()

    def close(self) -> None:
        """Return when all calls begun are done, and their threads gone."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()


class SystemFile:
    """A file of the operating system; syncs, long writes and waiting reads run in threads."""

    __slots__ = ("_fd", "_nowait", "_threads", "path")

    def __init__(self, path: str, fd: int, threads: Threads) -> None:
        self.path = path
        self._fd = fd
        self._threads = threads
        self._nowait = True

    def read_nowait(self, buffer: memoryview, offset: int) -> bool:
        if not self._nowait:
            return False
        try:
            return os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT) == len(buffer)
        except BlockingIOError:
            return False
        except OSError:
            # The file system has no RWF_NOWAIT (or the read failed: the waiting read will say).
            self._nowait = False
            return False

    def read_now(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._fd, [buffer[done:]], offset + done)
            if count == 0:  # zeros instead would be taken for data (I9)
                raise OSError(errno.EIO, f"the file ends at byte {offset + done}")
            done += count

    async def read(self, buffer: memoryview, offset: int) -> None:
        await self._threads.start(partial(self.read_now, buffer, offset))

    def write(self, data: bytes | memoryview, offset: int) -> None:
        length = len(data)
        count = os.pwrite(self._fd, data, offset) if length <= CALL_BYTES else 0
        if count != length:
            self._write_rest(memoryview(data), count, offset)

    def _write_rest(self, view: memoryview, count: int, offset: int) -> None:
        while count < len(view):
            count += os.pwrite(self._fd, view[count : count + CALL_BYTES], offset + count)

    def write_vector(self, buffers: Sequence[Buffer], size: int, offset: int) -> None:
        if size > CALL_BYTES:
            for part, length in _portions(buffers):
                self.write_vector(part, length, offset)
                offset += length
            return
        count = os.pwritev(self._fd, buffers, offset)
        if count != size:  # a full disk or a signal: the rest in one piece, or the error
            self._write_rest(memoryview(b"".join(buffers)), count, offset)

    async def write_long(self, buffers: Sequence[Buffer], size: int, offset: int) -> None:
        await self._threads.run(partial(self.write_vector, buffers, size, offset))

    async def sync(self) -> None:
        await self._threads.start(self.sync_now)

    def begin_sync(self, done: Callable[[OSError | None], None]) -> None:
        self._threads.begin(self._try_sync, done)

    def _try_sync(self) -> OSError | None:
        try:
            self.sync_now()
        except OSError as error:
            return error
        return None

    def sync_now(self) -> None:
        os.fdatasync(self._fd)

    def allocate(self, size: int) -> None:
        os.posix_fallocate(self._fd, 0, size)

    def zero(self, offset: int, length: int) -> None:
        # Space that was preallocated must stay so, or destaging to it could meet a full file system.
        status = os.fstat(self._fd)
        dense = status.st_blocks * 512 >= status.st_size
        modes = (_PUNCH_HOLE_KEEP_SIZE, _ZERO_RANGE_KEEP_SIZE)
        for mode in reversed(modes) if dense else modes:
            if _libc.fallocate(self._fd, mode, offset, length) == 0:
                return
        while length > 0:
            part = min(length, len(ZEROES))
            self.write(ZEROES[:part], offset)
            offset += part
            length -= part

    def is_blank(self) -> bool:
        try:
            os.lseek(self._fd, 0, os.SEEK_DATA)
        except OSError as error:
            return error.errno == errno.ENXIO
        return False

    def size(self) -> int:
        if stat.S_ISBLK(os.fstat(self._fd).st_mode):
            return os.lseek(self._fd, 0, os.SEEK_END)
        return os.fstat(self._fd).st_size

    def claim(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class AbsentFile:
    """Stands for a file that cannot be opened: whatever is asked of it fails with ENXIO."""

    def __init__(self, path: str) -> None:
        self.path = path

    def _fail(self) -> OSError:
        return OSError(errno.ENXIO, os.strerror(errno.ENXIO), self.path)

    def read_nowait(self, buffer: memoryview, offset: int) -> bool:
        raise self._fail()

    def read_now(self, buffer: memoryview, offset: int) -> None:
        raise self._fail()

    async def read(self, buffer: memoryview, offset: int) -> None:
        raise self._fail()

    def write(self, data: bytes | memoryview, offset: int) -> None:
        raise self._fail()

    def write_vector(self, buffers: Sequence[Buffer], size: int, offset: int) -> None:
        raise self._fail()

    async def write_long(self, buffers: Sequence[Buffer], size: int, offset: int) -> None:
        raise self._fail()

    async def sync(self) -> None:
        raise self._fail()

    def begin_sync(self, done: Callable[[OSError | None], None]) -> None:
        raise self._fail()

    def sync_now(self) -> None:
        raise self._fail()

    def allocate(self, size: int) -> None:
        raise self._fail()

    def zero(self, offset: int, length: int) -> None:
        raise self._fail()

    def is_blank(self) -> bool:
        raise self._fail()

    def size(self) -> int:
        raise self._fail()

    def claim(self) -> bool:
        raise self._fail()

    def close(self) -> None:
        """Nothing is open."""


class SystemFiles:
    """Files of the operating system."""

    def __init__(self, threads: int = 8) -> None:
        self._threads = Threads(threads)

    def open(self, path: str, *, create: bool = False) -> File:
        if create:
            _make_directory(os.path.dirname(path) or ".")
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        if not create and stat.S_ISBLK(os.stat(path).st_mode):
            flags |= os.O_EXCL  # a device with a mounted file system is refused
        return SystemFile(path, os.open(path, flags, 0o600), self._threads)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def names(self, directory: str) -> list[str]:
        _make_directory(directory)
        return sorted(os.listdir(directory))

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def resolve(self, path: str) -> str:
        return os.path.realpath(path)

    def room(self, path: str) -> int:
        while not os.path.exists(path):
            path = os.path.dirname(path) or "."
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def sync_directory(self, directory: str) -> None:
        _sync_directory(directory)

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Run a blocking call in the same threads. Cancelled, it ends only when the call has."""
        return await self._threads.run(partial(function, *arguments))

    def close(self) -> None:
        self._threads.close()


def _portions(buffers: Sequence[Buffer]) -> Iterator[tuple[list[Buffer], int]]:
    """Cut ``buffers`` into (buffers, size) of `CALL_BYTES` each; the last one may be shorter."""
    portion: list[Buffer] = []
    size = 0
    for buffer in buffers:
        view = memoryview(buffer)
        while len(view) > CALL_BYTES - size:
            portion.append(view[: CALL_BYTES - size])
            view = view[CALL_BYTES - size :]
            yield portion, CALL_BYTES
            portion, size = [], 0
        if view:
            portion.append(view)
            size += len(view)
    if portion:
        yield portion, size


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_directory(directory: str) -> None:
    """Make a directory and what is missing above it; the new names survive power loss (F6)."""
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory) or "."
    _make_directory(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory)
    _sync_directory(parent)
