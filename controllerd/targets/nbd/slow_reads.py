"""Requests that have to wait for a disk, or are too long for the pass.

Owns: serving one such read, piece by piece, and a BLOCK_STATUS whose answer has to be found out.
Never: decides which requests these are, or how many there may be (transmission.py and commands.py do).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from controllerd.model.errors import RemoteCopyError
from controllerd.targets.nbd.events import SlowRead, SlowStatus
from controllerd.targets.nbd.transmission import Transmission


async def serve_slowly(session: Transmission, read: SlowRead, drained: Callable[[], Awaitable[None]]) -> None:
    """Answer one slow read. ``drained`` lets others run, and waits until the client takes more data.

    Pieces keep the loop free and the memory bounded; a reply that must not be split is gathered first. Pieces that are
    holes are sent as such.
    """
    volume, header, hole_min = session.volume, session.framing.data_size, session.framing.hole_min
    piece_max = session.limits.piece_max
    reply_max = read.length if read.whole else piece_max
    position, end = read.offset, read.offset + read.length
    try:
        while position < end:
            length = min(reply_max, end - position)
            if length >= hole_min and volume.is_hole(position, length):
                session.answer_slow(read, None, position, length)
            else:
                buffer = bytearray(header + length)
                view = memoryview(buffer)[header:]
                for start in range(0, length, piece_max):
                    piece = view[start : start + piece_max]
                    if start:
                        await drained()
                    if not volume.read_into(piece, position + start):
                        await volume.read(piece, position + start)
                session.answer_slow(read, buffer, position, length)
            position += length
            if position < end:
                session.wake()
                await drained()
    except RemoteCopyError as error:
        session.end_slow(read, error)
    else:
        session.end_slow(read, None)


async def serve_status(session: Transmission, status: SlowStatus) -> None:
    """Answer a BLOCK_STATUS as soon as the volume's differences are known, or known to be unknown."""
    await session.volume.learn_differences()
    session.end_status(status)
