"""Disks: which file or raw block device may give capacity, and opening it.

Owns: taking a file for a disk and opening it again at a start, so that no two disks, of
this controller or of another one, are ever the same file.
Never: knows pools, or what lies on a disk.

A disk's file is locked for as long as it is open. The lock is the file's, not the name's:
a symbolic or hard link, or another spelling of the path, meets it (F27).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from controllerd.model.errors import BadOrder, Conflict, DiskFailed, NoSpace
from controllerd.storage.io import AbsentFile, File, Files
from controllerd.storage.pools import Disk

_OWN: Final = ("journals/", "catalogue.", "lock")
"""How the names of the controller's own files below its data directory begin."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_IN_USE: Final = "is in use as a disk, of this controller or of another one"


def failure(disk: str, reason: str) -> str:
    """One line for people: why ``disk`` is not used any more."""
    return f"disk {disk}: {reason}; restart the controller once the disk works"


def absence(disk: str, reason: str) -> str:
    """One line for people: why ``disk`` was not taken into use."""
    return f"disk {disk}: {reason}; order group recover for its groups once the disk works"


def open_disk(files: Files, name: str, path: str, size: int) -> Disk:
    """Open a known disk; one that is not there, is shorter than ``size`` bytes or another's is a failed one."""
    try:
        file = files.open(path)
    except OSError as error:
        return Disk(name, path, size, AbsentFile(path), absence(name, f"{path}: {error.strerror}"))
    try:
        present = file.size()
        claimed = file.claim()
    except OSError as error:
        return Disk(name, path, size, file, absence(name, f"{path}: {error.strerror}"))
    if not claimed:
        file.close()
        return Disk(name, path, size, AbsentFile(path), absence(name, f"{path} {_IN_USE}"))
    short = present < size
    return Disk(name, path, size, file, absence(name, f"{path} has {present} bytes, it had {size}") if short else None)


def take_disk(
    files: Files, name: str, path: str, size: int | None, *, erase: bool, smallest: int, data_directory: str
) -> Disk:
    """Make a disk of a file (created with ``size`` bytes if missing) or of a raw block device.

    ``erase``: take an existing file or device although it holds data, which is lost.
    ``smallest``: fewest bytes. When it raises, everything is as it was.

    Raises:
        Conflict: the file is a disk already, holds data, or is the controller's own.
        BadOrder: the file is missing and no size was given, or its directory is missing; it is smaller than
            ``size``, or it cannot be opened.
        NoSpace: the file system has no room for it.
    """
    exists = files.exists(path)
    _check_place(files, name, path, data_directory, exists=exists)
    if not exists and size is None:
        raise BadOrder(f"disk {name}: {path} does not exist; give a size to create it")
    if size is not None and size < smallest:
        raise BadOrder(f"disk {name}: {size} bytes is less than one region of {smallest}")
    if not exists and size is not None and size > (room := files.room(path)):
        raise NoSpace(f"disk {name}: {path}: {size} bytes wanted, the file system has {room} left")
    file: File | None = None
    try:
        file = files.open(path, create=not exists)
        if not file.claim():
            raise Conflict(f"disk {name}: {path} {_IN_USE}")
        if not exists and size is not None:
            file.allocate(size)
        file.sync_now()  # an order before may have been interrupted after making the file
        files.sync_directory(os.path.dirname(path) or ".")
        present = file.size()
        if present < (size or smallest):
            raise BadOrder(f"disk {name}: {path} has {present} bytes, fewer than {size or smallest}")
        if exists and not file.is_blank():
            if not erase:
                raise Conflict(f"disk {name}: {path} holds data, which would be lost; order it with erase to take it")
            file.zero(0, size or present)
    except BaseException as error:
        # Closed first: what an open file takes up stays taken when its name is gone.
        if file is not None:
            file.close()
        if not exists:
            files.remove(path)
        if isinstance(error, OSError):
            kind = NoSpace if error.errno in _FULL else BadOrder
            raise kind(f"disk {name}: {path}: {error.strerror}") from error
        raise
    return Disk(name, path, size or present, file)


def _check_place(files: Files, name: str, path: str, data_directory: str, *, exists: bool) -> None:
    """Refuse the controller's own files, and to make directories anywhere but in the data directory.

    Raises:
        Conflict: ``path`` is one of them.
        BadOrder: its directory does not exist.
    """
    own = f"{files.resolve(data_directory)}/"
    real = files.resolve(path)
    directory = os.path.dirname(path) or "."
    if not exists and not real.startswith(own) and not files.exists(directory):
        # A mistyped or unmounted mount point would fill the root file system.
        raise BadOrder(f"disk {name}: directory {directory} does not exist; make or mount it first")
    if real.startswith(own) and real[len(own) :].startswith(_OWN):
        raise Conflict(f"disk {name}: {path} is the controller's own: its data directory holds more than disks")


def check_works(disk: Disk) -> None:
    """Refuse a disk that failed.

    Raises:
        DiskFailed: it has.
    """
    if disk.failed is not None:
        raise DiskFailed(disk.failed, disk=disk.name)
