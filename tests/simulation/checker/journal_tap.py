"""Reads journal records from what goes to a journal file or over a transfer path, for `Journaled` events.

Owns: a second decoder of the record format, written from the format's description.
Never: uses the controllers' codec, which is among what is judged.

A record is 80 bytes, little-endian, and for kind 1 (WRITE) ``length`` bytes of data: magic "RCRJ", u8 version,
u8 kind, u16 flags, u32 generation, incarnation, CRC-32C of the data, volume key, length; u64 sequence,
time, durable, offset, marker, origin; u32 CRC-32C of the 76 bytes before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from tests.simulation.history import DAMAGED, SECTOR, ZEROS, Durable, History, Journaled

_HEADER: Final = struct.Struct("<4sBBHIIIIIQQQQQQI")
_MAGIC: Final = b"RCRJ"
_WRITE: Final = 1
_NOTE: Final = 16
assert _HEADER.size == 80


@dataclass(frozen=True, slots=True)
class Tap:
    """One group at one site. ``volumes``: volume key in records -> logical name."""

    history: History
    site: str
    group: str
    volumes: Mapping[int, str]

    def note(self, at: float, data: bytes | memoryview) -> None:
        """Note all records that lie back to back at the start of ``data``."""
        for event in self._records(at, memoryview(data)):
            self.history.add(event)

    def synced(self, at: float, data: bytes | memoryview) -> None:
        """Note the writes in ``data`` as durable."""
        serials = tuple(event.serial for event in self._records(at, memoryview(data)) if event.serial is not None)
        if serials:
            self.history.add(Durable(at, self.site, self.group, serials))

    def _records(self, at: float, view: memoryview) -> Iterator[Journaled]:
        position = 0
        while position + _HEADER.size <= len(view):
            head = view[position : position + _HEADER.size]
            (
                magic,
                _,
                kind,
                _,
                generation,
                incarnation,
                data_crc,
                key,
                length,
                sequence,
                time,
                _,
                offset,
                _,
                _,
                crc,
            ) = _HEADER.unpack(head)
            if magic != _MAGIC or crc32c(head[:-4]) != crc:
                return
            position += _HEADER.size
            data = view[position : position + (length if kind == _WRITE else 0)]
            position += len(data)
            if kind == _WRITE and (len(data) < length or crc32c(data) != data_crc):
                return
            if kind != _NOTE:
                volume = self.volumes.get(key, "")
                yield Journaled(
                    at, self.site, self.group, generation, incarnation, sequence, time, kind, volume, offset, length,
                    data_crc, self._serial(volume, offset, data),
                )  # fmt: skip

    def _serial(self, volume: str, offset: int, data: memoryview) -> int | None:
        if volume not in self.history.volumes or len(data) < SECTOR:
            return None
        serial = self.history.shown(volume, offset, data[:SECTOR])[0]
        return None if serial in (ZEROS, DAMAGED) else serial
