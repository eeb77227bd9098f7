"""What a start with this configuration would meet: the data directory and the addresses, tried without a trace.

Owns: the look at them for ``controllerd --check-config``.
Never: makes or writes a file, listens, or talks to a daemon that runs. What it finds may change before the start.

What a controller that runs on the same data directory holds is no mistake, so it is a note.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from controllerd.config.model import Address, Config
from controllerd.config.problems import Problem
from controllerd.model.errors import Corrupt
from controllerd.storage.catalogue import peek_fact

_Found = tuple[str, str, str]  # key, wrong, right
_LISTENING: Final = 1 << 16
"""The flag of a listening socket in /proc/net/unix."""


def attempt(config: Config, file: str) -> tuple[list[Problem], list[str]]:
    """Return what would make a start fail, and notes on what only looks as if it would."""
    directory = config.controller.data_directory
    problems = [*_directory(directory)]
    running = not problems and _is_running(directory)
    if not problems:
        problems += _owner(config, in_use=running)
    notes = [f"a controller is running on {directory}"] if running else []
    for key, address in _listeners(config):
        found = list(_unix(key, address.path) if address.path is not None else _tcp(key, address))
        if running and any(_is_in_use(wrong) for _, wrong, _ in found):
            notes.append(f"{key}: {address} is in use, as it should be if that controller has this configuration")
        else:
            problems += found
    return [Problem(file, *found) for found in problems], notes


def _listeners(config: Config) -> Iterator[tuple[str, Address]]:
    for address in config.nbd.listen:
        yield "nbd.listen", address
    yield "management.listen", config.management.listen
    if config.replication.listen is not None:
        yield "replication.listen", config.replication.listen


# ---- the data directory --------------------------------------------------------------


def _directory(path: Path) -> Iterator[_Found]:
    key = "controller.data_directory"
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        yield key, f"{path} cannot be made: {parent} is not a directory", "name a directory, or one to be created"
    elif not _may(parent):
        wrong = f"{path} cannot be " + ("written" if parent == path else f"made: {parent} cannot be written")
        yield key, f"{wrong} by this user", "name a directory that the daemon's user can write"
    for name in ("lock", "catalogue.sqlite", "journals", "disks"):
        inside = path / name
        if parent == path and inside.exists() and not _may(inside):
            yield (
                key,
                f"{inside} cannot be read and written by this user",
                f"give it to the daemon's user: chown {inside}",
            )


def _may(path: Path) -> bool:
    wanted = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
    return os.access(path, wanted, effective_ids=True)


def _is_running(directory: Path) -> bool:
    """Whether a daemon has the directory's lock; one that starts in the same microseconds may be refused it."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _owner(config: Config, *, in_use: bool) -> Iterator[_Found]:
    directory, owner = config.controller.data_directory, config.controller.owner
    try:
        known = peek_fact(str(directory / "catalogue.sqlite"), "owner", in_use=in_use)
    except Corrupt as error:
        yield "controller.data_directory", str(error), "put back the file as it was, or choose another directory"
        return
    if known not in (None, owner):
        wrong = f"{directory} belongs to controller {known}, this is {owner}"
        yield "controller.data_directory", wrong, "choose another directory"


# ---- addresses -------------------------------------------------------------------------


def _is_in_use(wrong: str) -> bool:
    return wrong.endswith(_IN_USE)


_IN_USE: Final = "is in use by another process"


def _tcp(key: str, address: Address) -> Iterator[_Found]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        yield key, f"{address}: {error.strerror or error}", "name an address of this machine"
        return
    for family, kind, protocol, _, place in found:
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                trial.bind(place)  # without listening: nobody can notice
            except OSError as error:
                yield _bind_problem(key, address, error)
                return


def _bind_problem(key: str, address: Address, error: OSError) -> _Found:
    if error.errno == errno.EADDRINUSE:
        return key, f"{address} {_IN_USE}", "choose another port, or stop that process"
    if error.errno == errno.EADDRNOTAVAIL:
        return key, f"{address} is not an address of this machine", "name one of its addresses, or 0.0.0.0 for all"
    if error.errno in (errno.EACCES, errno.EPERM):
        return key, f"{address} may not be listened on by this user", "choose a port above 1023"
    return key, f"{address}: {error.strerror}", "name an address of this machine"


def _unix(key: str, path: Path) -> Iterator[_Found]:
    if not _may(path.parent):
        yield key, f"{path.parent} cannot be written by this user", "name a directory that the daemon's user can write"
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        yield key, f"{path} exists and is not a socket", "name another path, or move the file away"
    elif _is_served(path):
        yield key, f"unix:{path} {_IN_USE}", "choose another path, or stop that process"


def _is_served(path: Path) -> bool:
    """Whether somebody listens on a UNIX socket; connecting to it would disturb them."""
    for line in Path("/proc/net/unix").read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(path) and int(fields[3], 16) & _LISTENING:
            return True
    return False
