"""Requests outside the hot pass: unusual reads and writes, and all other commands.

Owns: what each command allows (flags, ranges, lengths) and what it does.
Never: loops over the input; the pass in transmission.py calls `handle` for one request.

Source: proto.md, "Request types", "Error values"; spec §3.4 (write time in the payload).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from controllerd.model.errors import RemoteCopyError
from controllerd.targets.nbd.contexts import DIRTY, Context
from controllerd.targets.nbd.errors import RequestRefused
from controllerd.targets.nbd.events import END, GROUP, INPUT, PENDING, TURN, SlowStatus, Stop
from controllerd.targets.nbd.framing import ChunkFraming
from controllerd.targets.nbd.payloads import Payload, Zeroing, stage_zeroes
from controllerd.targets.nbd.settings import MIB
from controllerd.targets.nbd.wire import (
    EFFECT_LENGTH,
    U32,
    WRITE_TIME,
    WRITE_TIME_SIZE,
    Command,
    CommandFlag,
    Errno,
)

if TYPE_CHECKING:
    from controllerd.targets.nbd.transmission import Transmission

# Plain numbers: inverting an IntFlag keeps only the bits that have names, and unknown ones must be seen.
_DISC: Final = int(Command.DISC)
_WRITE: Final = int(Command.WRITE)
_FUA: Final = int(CommandFlag.FUA)
_DF: Final = int(CommandFlag.DF)
_REQ_ONE: Final = int(CommandFlag.REQ_ONE)
_NO_HOLE: Final = int(CommandFlag.NO_HOLE)
_FAST_ZERO: Final = int(CommandFlag.FAST_ZERO)
_STATUS_ALIGNMENT: Final = 64 << 10
_STATUS_TURN: Final = 4 * MIB
"""Looking through a longer range takes long enough for others to get a turn before the next request."""
_ZEROES_STEP: Final = 256 * MIB
"""Range of zeros staged at once: a record, and a set of regions that takes milliseconds to make."""
_PORTABLE_PAYLOAD: Final = 32 * MIB
"""A payload up to this is no attack, whatever was advertised (proto.md, "Size constraints")."""


class Request(NamedTuple):
    """One request's header; ``offset`` and ``length`` in bytes. ``cookie`` is a token (framing.py)."""

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
    framing = session.framing
    if head >> 32 != framing.magic:
        session.fault = "client sent something that is not an NBD request"
        return END
    request = Request(head & 0xFFFF, head >> 16 & 0xFFFF, cookie, offset, length)
    if request.command == _DISC:
        session.skip(framing.request_size)
        return END
    if request.command == _WRITE:
        if request.flags & framing.payload_flag == framing.payload_flag:
            return _write(session, request)
        # Whether data follows is anyone's guess, and neither may be taken for the other.
        session.fault = "client sent a WRITE without the flag PAYLOAD_LEN"
        return END
    if request.flags & framing.payload_flag:
        return _with_payload(session, request)
    try:
        rule = _RULES.get(request.command)
        if rule is None:
            raise RequestRefused(Errno.EINVAL, f"command {request.command} is not known")
        _check(session, request, rule)
        if rule.changes and length and not session.group.accepting:
            return GROUP
        stop = rule.serve(session, request)
    except (RemoteCopyError, RequestRefused) as error:
        session.fail(request.command, cookie, error)
        stop = None
    session.skip(framing.request_size)
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


# ---- requests with a payload -----------------------------------------------------------


def _write(session: Transmission, request: Request) -> Stop | None:
    """Serve a WRITE that the hot pass left: with flags, a write time, no or much data, or one that is refused."""
    length = request.length
    overhead = WRITE_TIME_SIZE if session.carries_time else 0
    try:
        _check_write(session, request, overhead)
    except RequestRefused as error:
        return _drain(session, request, error)
    header_size = session.framing.request_size
    if not length:
        session.skip(header_size)
        _finish_write(session, request)
        return None
    if not session.group.accepting:
        return GROUP
    long = length - overhead > session.limits.piece_max
    message = session.peek(header_size + (overhead if long else length))
    if message is None:
        return INPUT
    carried = WRITE_TIME.unpack_from(message, header_size)[0] if overhead else None
    session.skip(len(message))
    if long:
        session.unfinished = Payload(
            Command.WRITE,
            request.cookie,
            request.offset,
            length - overhead,
            carried,
            durable=bool(request.flags & _FUA),
        )
        return None
    try:
        data = message[header_size + overhead :]
        session.retain(session.group.stage_write(session.volume, request.offset, data, carried), len(data))
    except RemoteCopyError as error:
        session.fail(Command.WRITE, request.cookie, error)
        return None
    _count(session, request)
    _finish_write(session, request)
    return None


def _drain(session: Transmission, request: Request, error: RequestRefused) -> Stop | None:
    """Refuse a request after its payload was thrown away; one that is too long for that ends the session."""
    limits = session.limits
    most = limits.drain_max
    if session.framing.extended:
        # Such clients know the limit, and the document wants more than that to end the session.
        most = min(most, max(limits.payload_max, _PORTABLE_PAYLOAD) + WRITE_TIME_SIZE)
    if request.length > most:
        session.fault = f"client sent {request.length} bytes with command {request.command}"
        return END
    session.skip(session.framing.request_size)
    session.unfinished = Payload(request.command, request.cookie, request.offset, request.length, error=error)
    return None


def _with_payload(session: Transmission, request: Request) -> Stop | None:
    """Serve a request other than WRITE that has a payload: BLOCK_STATUS of some of the contexts."""
    if request.command != Command.BLOCK_STATUS:
        error = RequestRefused(Errno.EINVAL, f"command {request.command} takes no payload")
        return _drain(session, request, error)
    count, rest = divmod(request.length - EFFECT_LENGTH.size, U32.size)
    if rest or not 0 < count <= len(session.contexts):
        error = RequestRefused(Errno.EINVAL, f"{request.length} bytes do not name negotiated contexts")
        return _drain(session, request, error)
    header_size = session.framing.request_size
    message = session.peek(header_size + request.length)
    if message is None:
        return INPUT
    (effect,) = EFFECT_LENGTH.unpack_from(message, header_size)
    numbers = [number for (number,) in U32.iter_unpack(message[header_size + EFFECT_LENGTH.size :])]
    request = request._replace(length=effect, flags=request.flags & ~session.framing.payload_flag)
    contexts = [context for context in session.contexts if context.number in numbers]
    try:
        if len(contexts) != count:
            raise RequestRefused(Errno.EINVAL, "a context is named twice, or was not negotiated")
        _check(session, request, _RULES[Command.BLOCK_STATUS])
        stop = _answer_status(session, request, contexts)
    except (RemoteCopyError, RequestRefused) as refused:
        session.fail(request.command, request.cookie, refused)
        stop = None
    session.skip(len(message))
    return stop


def _check_write(session: Transmission, request: Request, overhead: int) -> None:
    if session.stopping:
        raise RequestRefused(Errno.ESHUTDOWN, "server is stopping")
    if request.flags & ~(_FUA | session.framing.payload_flag):
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
    framing = session.framing
    whole = bool(request.flags & _DF)
    if whole and not framing.chunked:
        raise RequestRefused(Errno.EINVAL, "flag DF needs structured replies")
    if request.length > session.limits.payload_max:
        errno = Errno.EOVERFLOW if framing.chunked else Errno.EINVAL
        raise RequestRefused(errno, f"at most {session.limits.payload_max} bytes can be read at once")
    if not request.length:
        session.put(framing.empty_read(request.cookie))
        return None
    enough = session.read_slowly(request.cookie, request.offset, request.length, whole=whole)
    return PENDING if enough else None


def _flush(session: Transmission, request: Request) -> Stop | None:
    if request.offset or request.length:
        raise RequestRefused(Errno.EINVAL, "FLUSH covers the whole volume: offset and length must be 0")
    _count(session, request)
    session.flushes.append(request.cookie)
    return None


def _zero(session: Transmission, request: Request) -> Stop | None:
    """TRIM and WRITE_ZEROES.

    A range of zeros is one journal record and gives its space back, so it is fast. NO_HOLE is not: the space has to be
    provisioned, and storage does that by writing zeros.
    """
    no_hole = bool(request.flags & _NO_HOLE)
    if no_hole and request.flags & _FAST_ZERO:
        raise RequestRefused(Errno.ENOTSUP, "zeros that keep their space are as slow as a WRITE")
    step = session.limits.piece_max if no_hole else _ZEROES_STEP
    if request.length > step:
        session.unfinished = Zeroing(
            request.command,
            request.cookie,
            request.offset,
            request.length,
            step,
            no_hole=no_hole,
            durable=bool(request.flags & _FUA),
        )
        return None
    if request.length:
        stage_zeroes(session, request.command, request.offset, request.length, no_hole=no_hole)
    session.counters.requests[request.command] += 1
    _finish_write(session, request)
    return None


def _cache(session: Transmission, request: Request) -> Stop | None:
    """CACHE is a hint; the kernel's page cache does well without it."""
    _count(session, request)
    session.done.append(request.cookie)
    return None


def _block_status(session: Transmission, request: Request) -> Stop | None:
    return _answer_status(session, request, session.contexts)


def _answer_status(session: Transmission, request: Request, contexts: Sequence[Context]) -> Stop | None:
    framing = session.framing
    if not contexts or not isinstance(framing, ChunkFraming):
        raise RequestRefused(Errno.EINVAL, "no metadata context was negotiated")
    offset, length = request.offset, request.length
    if not length:
        raise RequestRefused(Errno.EINVAL, "range is empty")
    limit = session.limits.extents_range_max
    if length > limit:
        length = limit - (offset + limit) % _STATUS_ALIGNMENT
    _count(session, request)
    status = SlowStatus(request.cookie, offset, length, contexts, one=bool(request.flags & _REQ_ONE))
    if DIRTY in contexts and not session.volume.differences_known:
        session.slow_statuses.append(status)
        session.in_flight += 1
        return PENDING  # so that a client with many of them has few tasks
    session.answer_status(status)
    return TURN if length > _STATUS_TURN else None


_RULES: Final[dict[int, _Rule]] = {
    Command.READ: _Rule(_read, _FUA | _DF, Errno.EINVAL, changes=False),
    Command.FLUSH: _Rule(_flush, _FUA, Errno.EINVAL, changes=False),
    Command.TRIM: _Rule(_zero, _FUA, Errno.EINVAL, changes=True),
    Command.CACHE: _Rule(_cache, _FUA, Errno.EINVAL, changes=False),
    Command.WRITE_ZEROES: _Rule(_zero, _FUA | _NO_HOLE | _FAST_ZERO, Errno.ENOSPC, changes=True),
    Command.BLOCK_STATUS: _Rule(_block_status, _FUA | _REQ_ONE, Errno.EINVAL, changes=False),
}
"""FUA is allowed everywhere, as proto.md demands; reads and flushes need do nothing for it."""
