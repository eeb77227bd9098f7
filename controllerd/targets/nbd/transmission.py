"""NBD transmission phase as a machine: the pass over a connection's input.

Owns: parsing requests, dispatching them to the volume and its group, gathering replies,
and when parsing has to stop.
Never: touches sockets, tasks or clocks. The adapter fills `receive_buffer`, calls
`received`, `advance` and `settle`, sends `out`, serves `slow_reads`, and does what
`Stop` says.

One pass handles every complete request in the buffer: writes are staged as views of the
receive memory, reads are filled straight into a reply buffer, and then one commit and
one batch of replies follow. A request leaves the pass only if it has to wait: a read
that is not in memory, a flush, or a write whose acknowledgement waits for someone.

What a reader would get wrong: replies to writes are simple replies even when structured
ones were negotiated (allowed for replies without data, and half the bytes), while errors
and reads are structured then, as the protocol demands.

Source: proto.md, "Transmission"; RC ¶26-31 (acknowledge when journaled); spec §3.1, §3.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from controllerd.model.errors import JournalFailed, RemoteCopyError
from controllerd.targets.nbd import commands, payloads
from controllerd.targets.nbd.buffers import BufferPool
from controllerd.targets.nbd.contexts import WRITE_TIME, Context
from controllerd.targets.nbd.counters import Counters
from controllerd.targets.nbd.errors import RequestRefused
from controllerd.targets.nbd.events import SlowRead, Stop
from controllerd.targets.nbd.ports import Volume
from controllerd.targets.nbd.receive import Receive
from controllerd.targets.nbd.replies import failure, success
from controllerd.targets.nbd.settings import Limits
from controllerd.targets.nbd.wire import (
    DATA_CHUNK,
    DATA_CHUNK_SIZE,
    HEAD_DATA_DONE,
    HEAD_DATA_MORE,
    HEAD_READ,
    HEAD_SIMPLE_OK,
    HEAD_WRITE,
    REQUEST,
    REQUEST_SIZE,
    SIMPLE_REPLY,
    SIMPLE_REPLY_SIZE,
    WRITE_TIME_SIZE,
    Command,
)

Reply = bytes | memoryview
_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_FLUSH: Final = int(Command.FLUSH)
REPLY_BUFFER: Final = (256 << 10) + (16 << 10)
"""Bytes of an ordinary reply buffer: two reads of 128 KiB or 63 of 4 KiB, with their headers."""


class Transmission:
    """One client's session on one volume."""

    def __init__(
        self,
        volume: Volume,
        *,
        structured: bool,
        contexts: Sequence[Context],
        limits: Limits,
        chunks: BufferPool,
        replies: BufferPool,
        counters: Counters,
        wake: Callable[[], None],
        initial: bytes = b"",
    ) -> None:
        """``wake`` is called when replies were added to ``out`` outside a pass. ``initial``: bytes received already.

        Receive memory comes from ``chunks`` and reply memory from ``replies``: two pools, because the write cache keeps
        chunks for long, and replies must not run out of places for it.
        """
        self.volume = volume
        self.group = volume.group
        self.size = volume.size
        self.structured = structured
        self.contexts = tuple(contexts)
        self.limits = limits
        self.counters = counters
        self.carries_time = WRITE_TIME in self.contexts
        self.out: list[Reply] = []
        self.slow_reads: list[SlowRead] = []
        self.in_flight = 0
        self.slow_bytes = 0
        self.stopping = False
        self.fault = ""
        self.done: list[bytes] = []
        """Cookies of this pass that are answered with success once its writes are complete."""
        self.durable: list[bytes] = []
        """Likewise, once its writes survive power loss (FUA)."""
        self.flushes: list[bytes] = []
        self.staged_through = 0
        """Number of the last write staged and not settled yet; 0: none."""
        self.staged_bytes = 0
        self.payload: payloads.Payload | None = None
        self._ended = False
        self.wake = wake
        self._replies = replies
        self.input = Receive(chunks, limits, initial)
        self._pass_max = min(limits.piece_max, limits.payload_max)
        self._output_bytes = 0
        self._reply = bytearray()
        self._reply_view = memoryview(self._reply)
        self._reply_used = 0

    # ---- surface -----------------------------------------------------------------

    def receive_buffer(self) -> memoryview:
        """Return where to put the next bytes from the client; never empty after `Stop.INPUT`."""
        receive = self.input
        return receive.view[receive.end :]

    def received(self, count: int) -> None:
        """Say that ``count`` bytes were put into `receive_buffer`."""
        receive = self.input
        receive.end += count
        if count > receive.largest:
            receive.largest = count

    def advance(self) -> Stop:
        """Handle what was received, and add replies to `out`. When `unsettled`, `settle` has to follow."""
        if self._ended:
            return Stop.END
        limits = self.limits
        if self.in_flight >= limits.in_flight_max or self.slow_bytes >= limits.slow_reads_max:
            return Stop.PENDING
        self._output_bytes = 0
        stop: Stop | None = None
        while stop is None:
            stop = self._pass() if self.payload is None else payloads.take(self, self.payload)
        if self._reply_used:
            self._seal_reply()
        if stop is Stop.INPUT:
            receive = self.input
            if self.payload is None or receive.end == len(receive.chunk):
                receive.make_room(self._needed())
        elif stop is Stop.END:
            self._ended = True
        return stop

    def close(self) -> None:
        """Give the receive memory back. Answers that arrive later go nowhere."""
        self._ended = True
        self.wake = _nobody
        self.input.close()

    # ---- the hot pass ---------------------------------------------------------------

    def _pass(self) -> Stop | None:  # noqa: PLR0915 - one loop: a call per request would cost more than the request
        """Handle requests until one is incomplete or something stops it; None: a payload has to be taken first.

        Changes here are measured with ``make bench``. Unusual requests go to commands.py: every condition of the two
        fast branches fails for them, also while stopping (``size`` is 0) and when writes must wait or carry a time
        (``write_max`` is 0).
        """
        receive = self.input
        chunk, view, position, end = receive.chunk, receive.view, receive.position, receive.end
        volume, group, structured = self.volume, self.group, self.structured
        size = 0 if self.stopping else self.size
        read_max = self._pass_max
        write_max = read_max if group.accepting and not self.carries_time else 0
        unpack, pack_data, pack_simple = REQUEST.unpack_from, DATA_CHUNK.pack_into, SIMPLE_REPLY.pack_into
        stage_write, read_into, done = group.stage_write, volume.read_into, self.done.append
        header = DATA_CHUNK_SIZE if structured else SIMPLE_REPLY_SIZE
        reply, reply_view, used = self._reply, self._reply_view, self._reply_used
        room = len(reply)
        reads = read_bytes = writes = write_bytes = sequence = 0
        stop: Stop | None = Stop.INPUT
        while end - position >= REQUEST_SIZE:
            head, cookie, offset, length = unpack(chunk, position)
            if head == HEAD_WRITE and 0 < length <= write_max and offset + length <= size:
                after = position + REQUEST_SIZE + length
                if after > end:
                    break
                try:
                    sequence = stage_write(volume, offset, view[position + REQUEST_SIZE : after])
                except RemoteCopyError as error:
                    self.fail(_WRITE, cookie, error)
                else:
                    done(cookie)
                    writes += 1
                    write_bytes += length
                position = after
            elif head == HEAD_READ and 0 < length <= read_max and offset + length <= size:
                after = used + header + length
                if after > room:
                    self._reply_used = used
                    self._new_reply(header + length)
                    reply, reply_view, used = self._reply, self._reply_view, 0
                    room = len(reply)
                    after = header + length
                    if self._output_bytes >= self.limits.output_max:
                        stop = Stop.OUTPUT
                        break
                try:
                    filled = read_into(reply_view[used + header : after], offset)
                except RemoteCopyError as error:
                    self.fail(_READ, cookie, error)
                else:
                    if filled:
                        if structured:
                            pack_data(reply, used, HEAD_DATA_DONE, cookie, length + 8, offset)
                        else:
                            pack_simple(reply, used, HEAD_SIMPLE_OK, cookie)
                        used = after
                        reads += 1
                        read_bytes += length
                    elif self.read_slowly(cookie, offset, length, whole=True):
                        position += REQUEST_SIZE
                        stop = Stop.PENDING
                        break
                position += REQUEST_SIZE
            else:
                receive.position = position
                stop = commands.handle(self, head, cookie, offset, length)
                position = receive.position
                if stop is not None or self.payload is not None:
                    break
                stop = Stop.OUTPUT if self._output_bytes >= self.limits.output_max else Stop.INPUT
                if stop is Stop.OUTPUT:
                    break
        receive.position = position
        self._reply_used = used
        if reads:
            self.counters.requests[_READ] += reads
            self.counters.byte_counts[_READ] += read_bytes
        if writes:
            receive.retained = True
            self.staged_through = sequence
            self.staged_bytes += write_bytes
            self.counters.requests[_WRITE] += writes
            self.counters.byte_counts[_WRITE] += write_bytes
        return stop

    # ---- replies to reads ------------------------------------------------------------

    def _seal_reply(self) -> None:
        """Put the replies in the reply buffer out, and let go of it: it is free again when they were sent."""
        used = self._reply_used
        if used:
            self.out.append(self._reply_view[:used])
            self._output_bytes += used
            self._reply_used = 0
        if self._reply:
            self._reply_view = memoryview(b"")
            retired, self._reply = self._reply, bytearray()
            self._replies.retire(retired)

    def _new_reply(self, needed: int) -> None:
        self._seal_reply()
        self._reply = self._replies.take(REPLY_BUFFER if needed <= REPLY_BUFFER else self.limits.piece_max + (16 << 10))
        self._reply_view = memoryview(self._reply)

    def read_slowly(self, cookie: bytes, offset: int, length: int, *, whole: bool) -> bool:
        """Let a read leave the pass; True: that many are under way now that parsing has to stop."""
        whole = whole or not self.structured
        memory = length if whole else min(length, self.limits.piece_max)
        self.slow_reads.append(SlowRead(cookie, offset, length, whole, memory))
        self.in_flight += 1
        self.slow_bytes += memory
        return self.slow_bytes >= self.limits.slow_reads_max

    def answer_slow(self, read: SlowRead, buffer: bytearray, offset: int, length: int) -> None:
        """Send ``length`` bytes from byte ``offset`` of the volume; they follow the room for a header in ``buffer``."""
        if self.structured:
            last = offset + length == read.offset + read.length
            head = HEAD_DATA_DONE if last else HEAD_DATA_MORE
            DATA_CHUNK.pack_into(buffer, 0, head, read.cookie, length + 8, offset)
        else:
            SIMPLE_REPLY.pack_into(buffer, 0, HEAD_SIMPLE_OK, read.cookie)
        self.counters.byte_counts[_READ] += length
        self.out.append(memoryview(buffer))

    def end_slow(self, read: SlowRead, error: RemoteCopyError | None) -> None:
        """A slow read is answered, or failed with ``error`` (perhaps after some of its data was sent)."""
        self.in_flight -= 1
        self.slow_bytes -= read.memory
        if error is None:
            self.counters.requests[_READ] += 1
        else:
            self.fail(_READ, read.cookie, error)
        self.wake()

    # ---- writes ------------------------------------------------------------------------

    @property
    def unsettled(self) -> bool:
        """Whether something was staged or is to be answered that `settle` has to deal with."""
        return bool(self.done or self.durable or self.flushes or self.staged_through)

    def settle(self) -> None:
        """Commit what is staged, and answer writes and flushes now or when the group says so.

        Writes of other connections that are staged at this time are committed with it.
        """
        group = self.group
        done, durable, flushes, through = self.done, self.durable, self.flushes, self.staged_through
        self.done, self.durable, self.flushes = [], [], []
        self.staged_through = self.staged_bytes = 0
        error: RemoteCopyError | None = None
        try:
            group.commit()
        except RemoteCopyError as failed:
            error = failed
        if error is None and group.last_seq < through:
            # Somebody else's commit took our writes with it, and failed.
            error = JournalFailed("the journal could not be written")
        if error is not None:
            self._fail_all(_WRITE, done + durable, error)
            self._fail_all(_FLUSH, flushes, error)
            if self.payload is not None:
                self.payload.error = self.payload.error or error
            return
        last = group.last_seq
        if done:
            if group.complete_seq >= last:
                self.out.append(success(done))
            else:
                self.in_flight += len(done)
                group.when_complete(last, partial(self._answer, _WRITE, done))
        for command, cookies in ((_WRITE, durable), (_FLUSH, flushes)):
            if cookies:  # the group is told of a flush that is done already, too: it learns when flushes come
                self.in_flight += len(cookies)
                group.when_flushed(last, partial(self._answer, command, cookies))

    def _answer(self, command: int, cookies: list[bytes], error: RemoteCopyError | None) -> None:
        self.in_flight -= len(cookies)
        if error is None:
            self.out.append(success(cookies))
        else:
            self._fail_all(command, cookies, error)
        self.wake()

    # ---- everything else ------------------------------------------------------------------

    def peek(self, count: int) -> memoryview | None:
        """Return the ``count`` bytes from the request at hand on, or None if they have not all arrived."""
        receive = self.input
        if receive.end - receive.position < count:
            return None
        return receive.view[receive.position : receive.position + count]

    def skip(self, count: int) -> None:
        """Go behind ``count`` bytes of input."""
        self.input.position += count

    def retain(self, sequence: int, size: int) -> None:
        """Say that storage staged a view of the receive memory, ``size`` bytes, as number ``sequence``."""
        self.input.retained = True
        self.staged(sequence, size)

    def staged(self, sequence: int, size: int) -> None:
        """Say that a write was staged as number ``sequence``."""
        self.staged_through = sequence
        self.staged_bytes += size

    def put(self, reply: bytes) -> None:
        """Add a reply."""
        self.out.append(reply)
        self._output_bytes += len(reply)

    def fail(self, command: int, cookie: bytes, error: RemoteCopyError | RequestRefused) -> None:
        """Answer a request with an error."""
        self.counters.requests[command] += 1
        self.counters.errors[command] += 1
        self.put(failure(cookie, error, structured=self.structured))

    def _fail_all(self, command: int, cookies: list[bytes], error: RemoteCopyError) -> None:
        for cookie in cookies:
            self.counters.errors[command] += 1
            self.put(failure(cookie, error, structured=self.structured))

    def _needed(self) -> int:
        """Bytes that the incomplete request at hand takes in all."""
        receive = self.input
        if receive.end - receive.position < REQUEST_SIZE or self.payload is not None:
            return REQUEST_SIZE
        # Only a WRITE that is served in one piece is left lying incomplete.
        _, _, _, length = REQUEST.unpack_from(receive.chunk, receive.position)
        return REQUEST_SIZE + min(int(length), self.limits.piece_max + WRITE_TIME_SIZE)


def _nobody() -> None:
    return None
