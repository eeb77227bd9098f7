"""Every machine that a crash can leave: all subsets of what was not synced, one after the other.

Owns: enumerating them, each as a machine of its own, ready for its next life.
Never: draws by chance (`disk.Loss` does), or knows what is in the files.

A sector may be on the medium as it was synced last, or as it was after any later change; a
file's size likewise; of the name changes in a directory a beginning is kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.simulation.disk import SECTOR, SimulatedDisk
from tests.simulation.storage_machine import Machine, SimulatedCatalogue

Choice = tuple[int, bytes]
"""Offset in a file and what is there."""


@dataclass
class _Remains:
    """One file: ``base`` as it is synced; ``sectors``: for each changed one all it may hold; ``sizes`` it may have."""

    content: Any
    base: bytes
    sectors: list[list[Choice]]
    sizes: list[int]

    def axes(self) -> list[list[Any]]:
        return [*self.sectors, self.sizes]

    def build(self, choice: tuple[Any, ...]) -> bytearray:
        *sectors, size = choice
        longest = max([len(self.base), size, *(offset + len(data) for offset, data in sectors)])
        image = bytearray(self.base.ljust(longest, b"\0"))
        for offset, data in sectors:
            image[offset : offset + len(data)] = data
        return image[:size].ljust(size, b"\0")


def _remains(content: Any) -> _Remains:
    moving = bytearray(content.medium)
    sizes = [len(moving)]
    held: dict[int, list[bytes]] = {}
    for change in content.changes:
        for start in range(change.offset // SECTOR * SECTOR, change.offset + len(change.data), SECTOR):
            held.setdefault(start, [bytes(moving[start : start + SECTOR]).ljust(SECTOR, b"\0")])
        change.put(moving)
        sizes.append(len(moving))
        for start in range(change.offset // SECTOR * SECTOR, change.offset + len(change.data), SECTOR):
            held[start].append(bytes(moving[start : start + SECTOR]).ljust(SECTOR, b"\0"))
    sectors = [[(start, data) for data in dict.fromkeys(states)] for start, states in sorted(held.items())]
    changing = [states for states in sectors if len(states) > 1]
    return _Remains(content, bytes(content.medium), changing, list(dict.fromkeys(sizes)))


def after_power_loss(machine: Machine, limit: int) -> Iterator[Machine]:
    """Yield every machine that a power loss now can leave. ``machine`` itself is not changed.

    Raises:
        AssertionError: there are more than ``limit``; make the case smaller.
    """
    disk = machine.disk
    files: dict[int, _Remains] = {}
    for directory in disk.directories.values():
        for content in [*directory.seen.values(), *directory.medium.values()]:
            files.setdefault(id(content), _remains(content))
    names = {path: list(range(len(directory.changes) + 1)) for path, directory in disk.directories.items()}
    axes = [list(itertools.product(*remains.axes())) for remains in files.values() if _count(remains) <= limit]
    count = math.prod(map(_count, files.values())) * math.prod(map(len, names.values()))
    assert count <= limit, f"{count} machines could be left"
    for kept in itertools.product(*names.values()):
        for choices in itertools.product(*axes):
            images = {key: remains.build(choice) for (key, remains), choice in zip(files.items(), choices, strict=True)}
            yield _machine(machine, images, dict(zip(names, kept, strict=True)))


def _count(remains: _Remains) -> int:
    return math.prod(map(len, remains.axes()))


def after_kill(machine: Machine, torn: str | None = None) -> Iterator[Machine]:
    """Yield every machine that killing the daemon can leave.

    Args:
        torn: file whose last change was interrupted: its beginning is there, in whole sectors.
    """
    changes = [] if torn is None else machine.disk.content(torn).changes
    for length in range(0, len(changes[-1].data) + 1, SECTOR) if changes else (None,):
        left = _machine(machine, None, {})
        if length is not None:
            content = left.disk.content(torn or "")
            last = content.changes.pop()
            content.seen = bytearray(content.medium)
            content.changes.append(dataclasses.replace(last, data=last.data[:length]))
            for change in content.changes:
                change.put(content.seen)
        yield left


def _machine(machine: Machine, images: dict[int, bytearray] | None, kept: dict[str, int]) -> Machine:
    """Copy a machine; with ``images`` (by identity of the content) everything in it is synced."""
    disk = SimulatedDisk(random.Random(0))
    disk.life = machine.disk.life + 1
    copies: dict[int, Any] = {}

    def copy(content: Any) -> Any:
        if id(content) not in copies:
            if images is None:
                facts = {"seen": bytearray(content.seen), "medium": bytearray(content.medium)}
                copies[id(content)] = dataclasses.replace(content, **facts, changes=[*content.changes], dropped=[])
            else:
                image = images[id(content)]
                facts = {"seen": image, "medium": bytearray(image)}
                copies[id(content)] = dataclasses.replace(content, **facts, changes=[], dropped=[])
        return copies[id(content)]

    for path, directory in machine.disk.directories.items():
        names = {name: copy(content) for name, content in directory.medium.items()}
        if images is None:
            seen = {name: copy(content) for name, content in directory.seen.items()}
            changes = [_rename(change, copy) for change in directory.changes]
        else:
            for change in directory.changes[: kept[path]]:
                if change.content is None:
                    names.pop(change.path, None)
                else:
                    names[change.path] = copy(change.content)
            seen, changes = dict(names), []
        disk.directories[path] = dataclasses.replace(directory, seen=seen, medium=names, changes=changes)
    left = dataclasses.replace(machine, disk=disk, catalogue=None, boots=machine.boots + (images is not None))
    if machine.catalogue is not None:
        left.catalogue = SimulatedCatalogue(disk, None)
        left.catalogue.take_from(machine.catalogue)
    return left


def _rename(change: Any, copy: Callable[[Any], Any]) -> Any:
    return dataclasses.replace(change, content=None if change.content is None else copy(change.content))
