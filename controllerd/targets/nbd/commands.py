"""Requests outside the hot pass: unusual reads and writes, and all other commands.

Owns: what each command allows (flags, ranges, lengths) and what it does.
Never: loops over the input; the pass in transmission.py calls `handle` for one request.

Source: proto.md, "Request types", "Error values"; spec §3.4 (write time in the payload).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from controllerd.model.errors import RemoteCopyError
from controllerd.targets.nbd.errors import RequestRefused
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.payloads import Payload
from controllerd.targets.nbd.replies import block_status, empty_read, failure
from controllerd.targets.nbd.wire import (
    REQUEST_MAGIC,
    REQUEST_SIZE,
    WRITE_TIME,
    WRITE_TIME_SIZE,
    Command,
    CommandFlag,
    Errno,
)

if TYPE_CHECKING:
    from controllerd.targets.nbd.transmission import Transmission

# Plain numbers: inverting an IntFlag keeps only the bits that have names, and unknown ones must be seen.
_FUA: Final = int(CommandFlag.FUA)
_DF: Final = int(CommandFlag.DF)
_REQ_ONE: Final = int(CommandFlag.REQ_ONE)
_NO_HOLE: Final = int(CommandFlag.NO_HOLE)
_FAST_ZERO: Final = int(CommandFlag.FAST_ZERO)
_STATUS_ALIGNMENT: Final = 64 << 10


class Request(NamedTuple):
    """One request's header; ``offset`` and ``length`` in bytes."""

    command: int
    flags: int
    cookie: bytes
    offset: int
    length: int


class _Rule(NamedTuple):
    """How a command is served. ``beyond_end``: what a range beyond the volume's end gets."""

    serve: Callable[[Transmission, Request], Stop | None]
    flags: int
    beyond_end: Errno
    changes: bool


def handle(session: Transmission, head: int, cookie: bytes, offset: int, length: int) -> Stop | None:
    """Serve the request at the session's position and go behind it.

    Returns a reason to stop parsing, or None. `Stop.INPUT` (more of it has to arrive) and
    `Stop.GROUP` (it changes data, and the group takes no writes) leave the position where it is.
    """
    if head >> 32 != REQUEST_MAGIC:
        session.fault = "client sent something that is not an NBD request"
        return Stop.END
    request = Request(head & 0xFFFF, head >> 16 & 0xFFFF, cookie, offset, length)
    if request.command == Command.WRITE:
        return _write(session, request)
    if request.command == Command.DISC:
        session.skip(REQUEST_SIZE)
        return Stop.END
    rule = _RULES.get(request.command)
    if rule is None:
        session.skip(REQUEST_SIZE)
        session.counters.unknown += 1
        error = RequestRefused(Errno.EINVAL, f"command {request.command} is not known")
        session.put(failure(cookie, error, structured=session.structured))
        return None
    try:
        _check(session, request, rule)
        if rule.changes and length and not session.group.accepting:
            return Stop.GROUP
        stop = rule.serve(session, request)
    except (RemoteCopyError, RequestRefused) as error:
        session.fail(request.command, cookie, error)
        stop = None
    session.skip(REQUEST_SIZE)
    return stop


def _check(session: Transmission, request: Request, rule: _Rule) -> None:
    """Refuse what no volume could do: unknown flags, and ranges beyond the end.

    Raises:
        RequestRefused: with the error the protocol wants.
    """
    if session.stopping:
        raise RequestRefused(Errno.ESHUTDOWN, "server is stopping")
    if request.flags & ~rule.flags:
        raise RequestRefused(Errno.EINVAL, f"flags {request.flags:#x} are not allowed here")
    _check_range(session, request.offset, request.length, rule.beyond_end, changes=rule.changes)


def _check_range(session: Transmission, offset: int, length: int, errno: Errno, *, changes: bool) -> None:
    if offset + length <= session.size:
        return
    if changes and not session.volume.writable:
        raise RequestRefused(Errno.EPERM, f"volume {session.volume.name} is read-only")
    raise RequestRefused(errno, f"bytes {offset} to {offset + length} are beyond the end at {session.size}")


def _count(session: Transmission, request: Request) -> None:
    session.counters.requests[request.command] += 1
    session.counters.byte_counts[request.command] += request.length


# ---- WRITE ---------------------------------------------------------------------------


def _write(session: Transmission, request: Request) -> Stop | None:
    """Serve a WRITE that the hot pass left: with flags, a write time, no or much data, or one that is refused."""
    length = request.length
    overhead = WRITE_TIME_SIZE if session.carries_time else 0
    if length > session.limits.drain_max:
        session.fault = f"client sent a WRITE of {length} bytes"
        return Stop.END
    try:
        _check_write(session, request, overhead)
    except RequestRefused as error:
        session.skip(REQUEST_SIZE)
        session.payload = Payload(request.cookie, request.offset, length, None, durable=False, error=error)
        return None
    if not length:
        session.skip(REQUEST_SIZE)
        _finish_write(session, request)
        return None
    if not session.group.accepting:
        return Stop.GROUP
    long = length - overhead > session.limits.piece_max
    message = session.peek(REQUEST_SIZE + (overhead if long else length))
    if message is None:
        return Stop.INPUT
    carried = WRITE_TIME.unpack_from(message, REQUEST_SIZE)[0] if overhead else None
    session.skip(len(message))
    if long:
        durable = bool(request.flags & _FUA)
        session.payload = Payload(request.cookie, request.offset, length - overhead, carried, durable=durable)
        return None
    try:
        data = message[REQUEST_SIZE + overhead :]
        session.retain(session.group.stage_write(session.volume, request.offset, data, carried), len(data))
    except RemoteCopyError as error:
        session.fail(Command.WRITE, request.cookie, error)
        return None
    _count(session, request)
    _finish_write(session, request)
    return None


def _check_write(session: Transmission, request: Request, overhead: int) -> None:
    if session.stopping:
        raise RequestRefused(Errno.ESHUTDOWN, "server is stopping")
    if request.flags & ~_FUA:
        raise RequestRefused(Errno.EINVAL, f"flags {request.flags:#x} are not allowed with WRITE")
    if overhead and request.length <= overhead:
        raise RequestRefused(Errno.EINVAL, "payload must be a write time of 8 bytes and data")
    size = request.length - overhead
    if size > session.limits.payload_max:
        raise RequestRefused(Errno.EINVAL, f"WRITE of {size} bytes; at most {session.limits.payload_max} are allowed")
    _check_range(session, request.offset, size, Errno.ENOSPC, changes=True)


def _finish_write(session: Transmission, request: Request) -> None:
    (session.durable if request.flags & _FUA else session.done).append(request.cookie)


# ---- the other commands ------------------------------------------------------------------


def _read(session: Transmission, request: Request) -> Stop | None:
    whole = bool(request.flags & _DF)
    if whole and not session.structured:
        raise RequestRefused(Errno.EINVAL, "flag DF needs structured replies")
    if request.length > session.limits.payload_max:
        errno = Errno.EOVERFLOW if session.structured else Errno.EINVAL
        raise RequestRefused(errno, f"at most {session.limits.payload_max} bytes can be read at once")
    if not request.length:
        session.put(empty_read(request.cookie, structured=session.structured))
        return None
    enough = session.read_slowly(request.cookie, request.offset, request.length, whole=whole)
    return Stop.PENDING if enough else None


def _flush(session: Transmission, request: Request) -> Stop | None:
    if request.offset or request.length:
        raise RequestRefused(Errno.EINVAL, "FLUSH covers the whole volume: offset and length must be 0")
    _count(session, request)
    session.flushes.append(request.cookie)
    return None


def _zero(session: Transmission, request: Request) -> Stop | None:
    """TRIM and WRITE_ZEROES. A range of zeros is one journal record, so FAST_ZERO never has to be refused."""
    if request.length:
        sequence = session.group.stage_zeroes(
            session.volume,
            request.offset,
            request.length,
            trim=request.command == Command.TRIM,
            no_hole=bool(request.flags & _NO_HOLE),
        )
        session.staged(sequence, 0)
    _count(session, request)
    _finish_write(session, request)
    return None


def _cache(session: Transmission, request: Request) -> Stop | None:
    """CACHE is a hint; the kernel's page cache does well without it."""
    _count(session, request)
    session.done.append(request.cookie)
    return None


def _block_status(session: Transmission, request: Request) -> Stop | None:
    if not session.contexts:
        raise RequestRefused(Errno.EINVAL, "no metadata context was negotiated")
    offset, length = request.offset, request.length
    if not length:
        raise RequestRefused(Errno.EINVAL, "range is empty")
    limit = session.limits.extents_range_max
    if length > limit:
        length = limit - (offset + limit) % _STATUS_ALIGNMENT
    answers = []
    for context in session.contexts:
        states = context.states(session.volume, offset, length)
        answers.append((context, states[:1] if request.flags & _REQ_ONE else states))
    _count(session, request)
    session.put(block_status(request.cookie, answers))
    return None


_RULES: Final[dict[int, _Rule]] = {
    Command.READ: _Rule(_read, _FUA | _DF, Errno.EINVAL, changes=False),
    Command.FLUSH: _Rule(_flush, _FUA, Errno.EINVAL, changes=False),
    Command.TRIM: _Rule(_zero, _FUA, Errno.EINVAL, changes=True),
    Command.CACHE: _Rule(_cache, _FUA, Errno.EINVAL, changes=False),
    Command.WRITE_ZEROES: _Rule(_zero, _FUA | _NO_HOLE | _FAST_ZERO, Errno.ENOSPC, changes=True),
    Command.BLOCK_STATUS: _Rule(_block_status, _FUA | _REQ_ONE, Errno.EINVAL, changes=False),
}
"""FUA is allowed everywhere, as proto.md demands; reads and flushes need do nothing for it."""
