"""What is to be checked: an export of a server, or a plain image file.

Owns: telling the two apart, and reading. Never: writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hostsim.bank_check import SUPERBLOCK_READ_BYTES
from hostsim.bank_layout import BankLayout
from hostsim.errors import BadVolumes
from hostsim.nbdclient import NbdConnection
from hostsim.stamp import StampError, Superblock, decode_superblock_untrusted

UNFORMATTED_READ_BYTES = 64 << 20
"""How much is looked at of a volume without a superblock, to see that nothing else is on it either."""


class Source(Protocol):
    """Something that holds a volume's content."""

    size: int

    async def read_all(self, length: int | None = None) -> bytes:
        """Return the first ``length`` bytes, all by default."""

    async def close(self) -> None:
        """Let go of it."""


class ImageFile:
    """A file with a volume's raw content."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    async def read_all(self, length: int | None = None) -> bytes:
        """Return the first ``length`` bytes, all by default."""
        return await asyncio.to_thread(self._read, self.size if length is None else length)

    def _read(self, length: int) -> bytes:
        with self._path.open("rb") as file:
            return file.read(length)

    async def close(self) -> None:
        """Nothing is kept open."""


async def open_source(location: str) -> Source:
    """Open an NBD URI or a path. Raises ConnectFailed, or BadVolumes for a path that is no readable file."""
    if location.partition("://")[1]:
        return await NbdConnection.connect(location)
    try:
        return ImageFile(Path(location))
    except OSError as error:
        raise BadVolumes(f"{location}: {error.strerror}") from None


async def load_bank(locations: Sequence[str]) -> list[bytes]:
    """Read, of each volume, what the bank uses. Raises ConnectFailed, ConnectionLost, CommandFailed, BadVolumes."""
    return [await _load(location) for location in locations]


async def _load(location: str) -> bytes:
    source = await open_source(location)
    try:
        return await load_used(source)
    finally:
        await source.close()


async def load_used(source: Source) -> bytes:
    """Read what the bank uses of one volume; of a volume that is not its own, enough to see that."""
    superblock = _superblock(await source.read_all(min(source.size, SUPERBLOCK_READ_BYTES)))
    wanted = UNFORMATTED_READ_BYTES
    if superblock is not None:
        wanted = BankLayout(superblock).used_blocks(superblock.volume) * superblock.block_size
    return await source.read_all(min(source.size, wanted))


def _superblock(start: bytes) -> Superblock | None:
    try:
        return decode_superblock_untrusted(start)
    except StampError:
        return None  # the checker says what is wrong with it
