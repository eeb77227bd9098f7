"""A real ext4 file system with real files on a volume, written by the kernel where that is possible.

Owns: the two ways to put files on an NBD export and to read them back, and the record of what was made durable when.
Never: knows controllers or takeovers; it is given NBD URIs, and a function that tells the volume's write time.

With root, /dev/fuse and loop devices: nbdfuse shows the export as a file, which the kernel mounts. Otherwise an image
is made with ``mkfs.ext4 -d`` and copied with nbdcopy, and read back with debugfs. What a takeover leaves is what a
power cut leaves, so reading it back starts with the replay of ext4's own journal, as any mount would.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.processes import Process, run

_FILES_PER_WAVE = 24
_ANY_STATUS = tuple(range(256))


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file that was synced: at ``synced_time`` (write time, ns) all of it was acknowledged by the controller."""

    name: str
    sha256: str
    size: int
    synced_time: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file system read back holds: required files that are intact, those that are not, and later ones seen."""

    intact: int
    damaged: list[str]
    later: int
    how: str


def real_files() -> Iterator[Path]:
    """Files that every machine with Python has: its standard library's sources, in a fixed order, without end."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    while True:
        yield from sources


def can_mount() -> bool:
    """Whether this process may mount a file system that lies behind FUSE."""
    return os.geteuid() == 0 and all(os.access(path, os.R_OK | os.W_OK) for path in ("/dev/fuse", "/dev/loop-control"))


class MountedVolume:
    """An export of which the kernel has mounted the file system (nbdfuse, loop device, ext4)."""

    how = "nbdfuse and a loop mount"

    def __init__(self, uri: str, directory: Path, *, make: bool = False, read_only: bool = False) -> None:
        """Attach and mount; ``make``: make a new file system first. Raises ProgramFailed."""
        directory.mkdir(parents=True)
        self._fuse, self.files = directory / "export", directory / "files"
        self._fuse.mkdir()
        self.files.mkdir()
        device = self._fuse / "volume"
        self._process = Process(["nbdfuse", device, uri], directory / "nbdfuse.log")
        try:
            self._process.wait_for(device.exists)
            if make:
                run("mkfs.ext4", "-q", "-F", device)
            elif read_only:
                _repair(device)
            run("mount", "-t", "ext4", "-o", "loop,ro" if read_only else "loop", device, self.files)
        except BaseException:
            self.close()
            raise

    def write(self, name: str, data: bytes) -> None:
        """Write a file; when this returns, the file system has synced it to the volume. Raises OSError."""
        path = self.files / name
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(self.files, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Unmount and detach; where the server is gone, whatever was not written yet is dropped."""
        for place in (self.files, self._fuse):
            # A dead server makes both slow to let go: what is still busy is detached now, and goes when it can.
            if _is_mounted(place) and run("umount", place, accept=_ANY_STATUS).status:
                run("umount", "-l", place, accept=_ANY_STATUS)
        self._process.stop()


def _is_mounted(place: Path) -> bool:
    # Not os.path.ismount: it says no where the FUSE server is gone.
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split(" ")[1].replace("\\040", " ") == str(place) for line in mounts)


def _repair(device: Path) -> None:
    """Replay the journal of the file system on ``device``, then demand that nothing is left to complain about."""
    run("e2fsck", "-E", "journal_only", "-p", device, accept=(0, 1))
    run("e2fsck", "-f", "-n", device)


class Writer:
    """Puts real files on a volume in waves, and keeps what a copy must hold."""

    def __init__(self, uri: str, directory: Path, size: int, write_time: Callable[[], int]) -> None:
        """Make the file system on the export at ``uri``. ``write_time`` tells its group's newest write time, ns."""
        self.records: list[FileRecord] = []
        self._uri, self._directory, self._size, self._write_time = uri, directory, size, write_time
        self._volume = MountedVolume(uri, directory, make=True) if can_mount() else None
        self._sources = real_files()
        self.how = MountedVolume.how if self._volume else "mkfs.ext4 -d and nbdcopy"

    @property
    def repeats(self) -> bool:
        """Whether further waves can be written while the file system stays in use."""
        return self._volume is not None

    def wave(self) -> None:
        """Write the next few files and record them as synced. Raises OSError, ProgramFailed when the volume is gone."""
        written: list[tuple[str, str, int]] = []
        image_files = self._directory / "tree"
        for _ in range(_FILES_PER_WAVE if self._volume else 8 * _FILES_PER_WAVE):
            data = next(self._sources).read_bytes()
            name = f"{len(self.records) + len(written):05}.py"
            if self._volume:
                self._volume.write(name, data)
            else:
                image_files.mkdir(parents=True, exist_ok=True)
                (image_files / name).write_bytes(data)
            written.append((name, hashlib.sha256(data).hexdigest(), len(data)))
        if not self._volume:
            image = self._directory / "image"
            run("mkfs.ext4", "-q", "-F", "-d", image_files, image, f"{self._size >> 10}k")
            run("nbdcopy", "--flush", image, self._uri)
        synced_time = self._write_time()
        self.records += [FileRecord(name, sha256, size, synced_time) for name, sha256, size in written]

    def close(self) -> None:
        """Let go of the volume, whether or not its controller still lives."""
        if self._volume:
            self._volume.close()
            self._volume = None


def verify(uri: str, directory: Path, records: list[FileRecord], cut_time: int) -> Verdict:
    """Check the file system on the export at ``uri`` against ``records``.

    Every file synced before ``cut_time`` must be there as it was written; of later ones, none must be.
    Raises ProgramFailed if e2fsck finds anything wrong once ext4's journal is replayed.
    """
    with contextlib.ExitStack() as stack:
        if can_mount():
            volume = MountedVolume(uri, directory, read_only=True)
            stack.callback(volume.close)
            files, how = volume.files, MountedVolume.how
        else:
            directory.mkdir(parents=True)
            image, files = directory / "image", directory / "files"
            run("nbdcopy", uri, image)
            _repair(image)
            files.mkdir()
            run("debugfs", "-R", f'rdump / "{files}"', image)
            how = "nbdcopy and debugfs"
        intact, damaged, later = 0, [], 0
        for record in records:
            same = _digest(files / record.name) == record.sha256
            if record.synced_time >= cut_time:
                later += same
            elif same:
                intact += 1
            else:
                damaged.append(record.name)
        return Verdict(intact, damaged, later, how)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
