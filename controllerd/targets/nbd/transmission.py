"""NBD transmission phase as a machine: the pass over a connection's input.

Owns: parsing requests, dispatching them to the volume and its group, gathering replies,
and when parsing has to stop.
Never: touches sockets, tasks or clocks. The adapter fills `receive_buffer`, calls
`received`, `advance` and `settle`, sends `out`, serves `slow_reads` and `slow_statuses`,
and does what `Stop` says.

One pass handles every complete request in the buffer: writes are staged as views of the
receive memory, reads are filled straight into a reply buffer, and then one commit and
one batch of replies follow. A request leaves the pass only if it has to wait: a read
that is not in memory, a flush, or a write whose acknowledgement waits for someone.

What a reader would get wrong: a cookie here is whatever a reply has to repeat of its
request (framing.py calls it a token); with extended headers that is more than the cookie.

Source: proto.md, "Transmission"; RC ¶26-31 (acknowledge when journaled); spec §3.1, §3.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from controllerd.model.errors import JournalFailed, RemoteCopyError
from controllerd.storage.buffers import BufferPool
from controllerd.targets.nbd import commands
from controllerd.targets.nbd.contexts import WRITE_TIME, Context
from controllerd.targets.nbd.counters import COMMANDS, Counters
from controllerd.targets.nbd.errors import RequestRefused
from controllerd.targets.nbd.events import END, INPUT, OUTPUT, PENDING, TURN, SlowRead, SlowStatus, Stop
from controllerd.targets.nbd.framing import ChunkFraming, Framing
from controllerd.targets.nbd.payloads import Unfinished
from controllerd.targets.nbd.ports import Volume
from controllerd.targets.nbd.receive import Receive
from controllerd.targets.nbd.settings import Limits
from controllerd.targets.nbd.wire import EXTENDED_LENGTH, EXTENDED_OFFSET, WRITE_TIME_SIZE, Command

Reply = bytes | memoryview
_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_FLUSH: Final = int(Command.FLUSH)
_TURN: Final = range(1024)
"""Requests handled before others get their turn: milliseconds, however many small ones a chunk holds."""
REPLY_BUFFER: Final = (256 << 10) + (16 << 10)
"""Bytes of an ordinary reply buffer: two reads of 128 KiB or 63 of 4 KiB, with their headers."""


class Transmission:
    """One client's session on one volume."""

    def __init__(
        self,
        volume: Volume,
        *,
        framing: Framing,
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
        self.framing = framing
        self.contexts = tuple(contexts)
        self.limits = limits
        self.counters = counters
        self.carries_time = WRITE_TIME in self.contexts
        self.out: list[Reply] = []
        self.slow_reads: list[SlowRead] = []
        self.slow_statuses: list[SlowStatus] = []
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
        self.unfinished: Unfinished | None = None
        """The request at hand, if it takes more than one step; what comes behind it waits."""
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
            return END
        limits = self.limits
        if self.in_flight >= limits.in_flight_max or self.slow_bytes >= limits.slow_reads_max:
            return PENDING
        self._output_bytes = 0
        stop: Stop | None = None
        while stop is None:
            stop = self._pass() if self.unfinished is None else self.unfinished.go_on(self)
        if self._reply_used:
            self._seal_reply()
        if stop is INPUT:
            receive = self.input
            if self.unfinished is None or receive.end == len(receive.chunk):
                receive.make_room(self._needed())
        elif stop is END:
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
        volume, group, framing = self.volume, self.group, self.framing
        size = 0 if self.stopping else self.size
        read_max = self._pass_max
        write_max = read_max if group.accepting and not self.carries_time else 0
        unpack, header_size = framing.unpack_request, framing.request_size
        read_head, write_head, hole_min = framing.read_head, framing.write_head, framing.hole_min
        extended, chunked = framing.extended, framing.chunked
        pack_data, data_head, data_size = framing.pack_data, framing.data_head, framing.data_size
        stage_write, read_into, done = group.stage_write, volume.read_into, self.done.append
        reply, reply_view, used = self._reply, self._reply_view, self._reply_used
        room = len(reply)
        reads = read_bytes = writes = write_bytes = sequence = 0
        stop: Stop | None = INPUT
        last = end - header_size
        for _ in _TURN:
            if position > last:
                break
            head, cookie, offset, length = unpack(chunk, position)
            if extended:
                cookie += chunk[position + EXTENDED_OFFSET : position + EXTENDED_LENGTH]
            if head == write_head and 0 < length <= write_max and offset + length <= size:
                after = position + header_size + length
                if after > end:
                    break
                try:
                    sequence = stage_write(volume, offset, view[position + header_size : after])
                except RemoteCopyError as error:
                    self.fail(_WRITE, cookie, error)
                else:
                    done(cookie)
                    writes += 1
                    write_bytes += length
                position = after
            elif head == read_head and 0 < length <= read_max and offset + length <= size:
                after = used + data_size + length
                if after > room:
                    self._reply_used = used
                    self._new_reply(data_size + length)
                    reply, reply_view, used = self._reply, self._reply_view, 0
                    room = len(reply)
                    after = data_size + length
                    if self._output_bytes >= self.limits.output_max:
                        stop = OUTPUT
                        break
                position += header_size
                if length >= hole_min and volume.is_hole(offset, length):
                    self.answer_hole(cookie, offset, length)
                    continue
                try:
                    filled = read_into(reply_view[used + data_size : after], offset)
                except RemoteCopyError as error:
                    self.fail(_READ, cookie, error)
                else:
                    if filled:
                        if chunked:
                            pack_data(reply, used, data_head, cookie, length + 8, offset)
                        else:
                            pack_data(reply, used, data_head, cookie)
                        used = after
                        reads += 1
                        read_bytes += length
                    elif self.read_slowly(cookie, offset, length, whole=True):
                        stop = PENDING
                        break
            else:
                receive.position = position
                stop = commands.handle(self, head, cookie, offset, length)
                position = receive.position
                if stop is not None or self.unfinished is not None:
                    break
                stop = OUTPUT if self._output_bytes >= self.limits.output_max else INPUT
                if stop is OUTPUT:
                    break
        else:
            stop = TURN
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
        whole = whole or not self.framing.chunked
        memory = length if whole else min(length, self.limits.piece_max)
        self.slow_reads.append(SlowRead(cookie, offset, length, whole, memory))
        self.in_flight += 1
        self.slow_bytes += memory
        return self.slow_bytes >= self.limits.slow_reads_max

    def answer_hole(self, cookie: bytes, offset: int, length: int) -> None:
        """Answer a whole READ with: it is zeros."""
        assert isinstance(self.framing, ChunkFraming)
        self.counters.requests[_READ] += 1
        self.counters.byte_counts[_READ] += length
        self.put(self.framing.hole(cookie, offset, length, done=True))

    def answer_slow(self, read: SlowRead, buffer: bytearray | None, offset: int, length: int) -> None:
        """Send ``length`` bytes from byte ``offset`` of the volume; they follow the room for a header in ``buffer``.

        No buffer: they are a hole.
        """
        framing = self.framing
        self.counters.byte_counts[_READ] += length
        if isinstance(framing, ChunkFraming):
            last = offset + length == read.offset + read.length
            if buffer is None:
                self.out.append(framing.hole(read.cookie, offset, length, done=last))
                return
            head = framing.data_head if last else framing.data_more_head
            framing.pack_data(buffer, 0, head, read.cookie, length + 8, offset)
        else:
            assert buffer is not None
            framing.pack_data(buffer, 0, framing.data_head, read.cookie)
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

    # ---- block status ----------------------------------------------------------------

    def answer_status(self, status: SlowStatus) -> None:
        """Answer a BLOCK_STATUS with what is known now."""
        assert isinstance(self.framing, ChunkFraming)
        answers = []
        for context in status.contexts:
            states = context.states(self.volume, status.offset, status.length)
            answers.append((context, states[:1] if status.one else states))
        self.put(self.framing.block_status(status.cookie, answers))

    def end_status(self, status: SlowStatus) -> None:
        """Answer a BLOCK_STATUS that waited."""
        self.in_flight -= 1
        self.answer_status(status)
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
            if self.unfinished is not None:
                self.unfinished.error = self.unfinished.error or error
            return
        last = group.last_seq
        if done:
            if group.complete_seq >= last:
                self.out.append(self.framing.success(done))
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
            self.out.append(self.framing.success(cookies))
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

    def finish(
        self, command: int, cookie: bytes, error: RemoteCopyError | RequestRefused | None, *, durable: bool
    ) -> None:
        """The unfinished request is through: it is answered with its error, or once its writes are complete."""
        self.unfinished = None
        if error is not None:
            self.fail(command, cookie, error)
        else:
            self.counters.requests[command] += 1
            (self.durable if durable else self.done).append(cookie)

    def put(self, reply: bytes) -> None:
        """Add a reply."""
        self.out.append(reply)
        self._output_bytes += len(reply)

    def fail(self, command: int, cookie: bytes, error: RemoteCopyError | RequestRefused) -> None:
        """Answer a request with an error."""
        if command < COMMANDS:
            self.counters.requests[command] += 1
            self.counters.errors[command] += 1
        else:
            self.counters.unknown += 1
        self.put(self.framing.failure(cookie, error))

    def _fail_all(self, command: int, cookies: list[bytes], error: RemoteCopyError) -> None:
        for cookie in cookies:
            self.counters.errors[command] += 1
            self.put(self.framing.failure(cookie, error))

    def _needed(self) -> int:
        """Bytes that the incomplete request at hand takes in all."""
        receive, framing = self.input, self.framing
        if receive.end - receive.position < framing.request_size or self.unfinished is not None:
            return framing.request_size
        # Only a request with a payload that is taken in one piece is left lying incomplete.
        _, _, _, length = framing.unpack_request(receive.chunk, receive.position)
        return framing.request_size + min(int(length), self.limits.piece_max + WRITE_TIME_SIZE)


def _nobody() -> None:
    return None
