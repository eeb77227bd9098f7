"""Damage at rest that a controller must notice: where it can be put, and putting it there.

Owns: finding the records whose loss the journal itself can prove, and spoiling one.
Never: spoils what no checksum covers (data disks), or a journal's last records, whose loss looks like its end
(ARCHITECTURE, known limits).

Source: fault catalogue F15-F17; I8, I10.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from controllerd.model.records import Kind, RecordError, decode_untrusted
from controllerd.storage.group import Group
from tests.simulation.disk import SimulatedDisk

RECENT = 12
"""Victims are among so many of the newest records that can be: older ones are seldom needed again."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a record lies."""

    sequence: int
    path: str
    offset: int
    size: int


def spoil_journal(disk: SimulatedDisk, group: Group, rng: random.Random) -> bool:
    """Spoil a record of a group's journal: a bit flips, or what belongs elsewhere lands there. False: there is none."""
    places, proven = _durable_records(disk, group)
    victims = [place for place in places if place.sequence <= proven][-RECENT:]
    if not victims:
        return False
    victim = rng.choice(victims)
    image = disk.content(victim.path).medium
    other = rng.choice(places).offset
    stray = bytes(image[other : other + victim.size])
    if rng.random() < 0.5 or stray == image[victim.offset : victim.offset + victim.size]:
        disk.rot(victim.path, victim.offset + rng.randrange(victim.size), rng.randrange(8))
    else:
        disk.overwrite(victim.path, victim.offset, stray)
    return True


def _durable_records(disk: SimulatedDisk, group: Group) -> tuple[list[_Place], int]:
    """Return the records on the medium, and the number through which the last ones say that it is durable."""
    places: list[_Place] = []
    proven = 0
    expected = group.journal.first
    for segment in group.journal.chain:
        path = segment.file.path
        view = memoryview(bytes(disk.content(path).medium[: segment.end]))
        position = segment.positions[0] if segment.positions else segment.end
        while position < segment.end:
            try:
                record = decode_untrusted(view, position)
            except RecordError:
                return places, proven
            if record.kind == Kind.NOTE:
                proven = proven if group.facts.numbered_here else max(proven, record.durable)
            elif record.sequence != expected:
                return places, proven
            else:
                expected += 1
                places.append(_Place(record.sequence, path, position, record.size))
                proven = max(proven, record.durable) if group.facts.numbered_here else proven
            position += record.size
    return places, proven
