"""Connection in its transmission phase: the adapter between a transport and `Transmission`.

Owns: when the socket is read and when not, sending, tasks for slow reads, and the end.
Never: knows a command.

The shape is always the same: receive, advance, send everything, and do what `Stop` says.
Nothing is received while parsing is stopped, so a client that sends faster than its
group takes writes, or reads slower than it asks, waits in its own socket buffer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from controllerd.targets.nbd.clients import Visitor
from controllerd.targets.nbd.events import END, GROUP, INPUT, OUTPUT, PENDING, TURN, Stop
from controllerd.targets.nbd.poll import Poll
from controllerd.targets.nbd.rounds import Rounds
from controllerd.targets.nbd.slow_reads import serve_slowly, serve_status
from controllerd.targets.nbd.transmission import Reply, Transmission
from controllerd.targets.nbd.wire import Command

_TLS_SLICE: Final = 256 << 10
"""Most bytes that are encrypted in one go."""
_LINGER_S: Final = 10.0
"""A client that was sent everything, and the end, must have taken it by then."""


class SessionOwner(Protocol):
    """What the server does for a session."""

    @property
    def rounds(self) -> Rounds:
        """The server's commit rounds."""

    @property
    def poll(self) -> Poll:
        """The server's looks for the next request."""

    def ended(self, session: Session, reason: str) -> None:
        """Forget the session; ``reason`` is empty if nothing was wrong."""


class Session(asyncio.BufferedProtocol):
    """One client at work on one volume."""

    def __init__(self, owner: SessionOwner, transport: asyncio.Transport, visitor: Visitor) -> None:
        self.visitor = visitor
        self.machine: Transmission
        self._owner = owner
        self._rounds = owner.rounds
        self._poll = owner.poll
        self._in_round = False
        self._round_bytes = 0
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._moved_s = self._loop.time()
        self._received = False
        self._unsent_before = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = INPUT
        self._running = False
        self._reading = transport.is_reading()
        self._paused = False
        self._eof = False
        self._ended = self._lost = False
        self._reason = ""
        self._linger: asyncio.TimerHandle | None = None
        self._waits_for_group = False
        self._drained: list[asyncio.Future[None]] = []
        self._unsent: deque[Reply] = deque()
        """Replies that TLS was not given yet; not empty only while paused."""

    def start(self, machine: Transmission) -> None:
        """Begin: ``machine`` may hold requests already."""
        self.machine = machine
        self._transport.set_write_buffer_limits(high=machine.limits.output_max)
        self._transport.set_protocol(self)
        self._granted = machine.volume.grant(self.visitor.client)
        self._run()

    def describe(self) -> dict[str, Any]:
        """Return the session for people: who, with what access, and what it did; sizes in bytes."""
        machine, visitor, counters = self.machine, self.visitor, self.machine.counters
        return {
            "id": visitor.number,
            "protocol": "nbd",
            "peer": visitor.peer,
            "tls": visitor.tls,
            "certificate": sorted(visitor.client.names),
            "read_only": not machine.volume.writable,
            "opened": visitor.opened_ns,
            "carries_write_time": machine.carries_time,
            "requests": sum(counters.requests) + counters.unknown,
            "errors": sum(counters.errors) + counters.unknown,
            "bytes_read": counters.byte_counts[Command.READ],
            "bytes_written": counters.byte_counts[Command.WRITE],
            "in_flight": machine.in_flight,
            "memory": self.memory,
        }

    @property
    def memory(self) -> int:
        """Bytes of memory that the session takes now: at most its limits' ``memory_max``."""
        machine = self.machine
        return len(machine.input.chunk) + machine.slow_bytes + self._unsent_bytes()

    def idle_s(self) -> float:
        """Return for how long the client has neither sent a request nor taken an answer, in seconds.

        It is as exact as the calls are frequent. A client that waits for this controller is not idle.
        """
        unsent = self._unsent_bytes()
        waits_for_us = not unsent and (self.machine.in_flight or self._stop is not INPUT)
        if self._received or unsent != self._unsent_before or waits_for_us:
            self._moved_s = self._loop.time()
        self._received = False
        self._unsent_before = unsent
        return self._loop.time() - self._moved_s

    def recheck(self) -> None:
        """The volume's rules have changed: close unless the client has what it had.

        A client that may go on, but with other rights, learns of them when it connects again.
        """
        if self.machine.volume.grant(self.visitor.client) is not self._granted:
            self.abort("access to the volume was changed")

    # ---- asyncio calls these ---------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive."""
        return self.machine.receive_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Handle what was received."""
        self._received = True
        machine = self.machine
        machine.received(nbytes)
        self._run()
        if not machine.in_flight:
            self._poll.served(self.visitor.number)

    def eof_received(self) -> bool:
        """The client sends nothing more; it still gets its answers (TLS cannot be half closed)."""
        self._eof = True
        self._run()
        return self._transport.get_extra_info("sslcontext") is None

    def pause_writing(self) -> None:
        """The client does not read: handle nothing more until it does."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on after `pause_writing`."""
        # Not at once: the transport calls this while it is sending.
        if self._unsent:
            self._loop.call_soon(self._refill)
        else:
            self._go_on()

    def _go_on(self) -> None:
        self._paused = False
        for future in self._drained:
            if not future.done():
                future.set_result(None)
        self._drained.clear()
        self._loop.call_soon(self._run)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up; what this client has staged stays valid, its answers go nowhere."""
        self._ended = True
        if self._linger is not None:
            self._linger.cancel()
        for task in self._tasks:
            task.cancel()
        for future in self._drained:
            future.cancel()
        self.machine.close()
        self.machine.volume.sessions.discard(self)
        self._owner.ended(self, self._reason or ("" if exc is None else str(exc)))
        # uvloop's TLS layer keeps methods of this object for ever. A cycle would keep that layer's buffers, which hold
        # what a stuck client did not take, until the collector comes by, and here it comes rarely.
        del self._transport
        self._lost = True

    # ---- inside -------------------------------------------------------------------

    def wake(self) -> None:
        """Send answers that came outside a pass, and go on parsing if that waited for them."""
        if self._running or self._ended:
            return
        self._send()
        if not self.machine.in_flight:
            self._poll.served(self.visitor.number)
        if self._stop is PENDING:
            # Not at once: this may be called from inside another connection's commit.
            self._loop.call_soon(self._run)
        elif self._stop is END:
            self._end()

    def shut_down(self) -> None:
        """The server is stopping: refuse what comes, answer what is under way, then close."""
        self.machine.stopping = True
        self._eof = True
        if self._stop is GROUP:
            # Requests that wait for the group are refused now.
            self._stop = INPUT
        self._run()

    def abort(self, reason: str) -> None:
        """Close at once."""
        if self._lost:
            return
        self._ended = True
        self._reason = self._reason or reason
        self._transport.abort()

    def _run(self) -> None:
        if self._running or self._ended:
            return
        if self._paused:
            self._read(wanted=False)
            return
        self._running = True
        try:
            stop = self._advance()
        except Exception as error:
            # A bug, here or in storage: it costs this connection, nobody else.
            self.abort(f"internal error: {error!r}")
            raise
        finally:
            self._running = False
        if self._eof and stop is INPUT:
            stop = END
        self._stop = stop
        self._read(wanted=stop is INPUT and not self._paused)
        if stop is INPUT:
            return
        if stop is GROUP and not self._waits_for_group:
            self._waits_for_group = True
            self.machine.group.when_accepting(self._group_accepts)
        elif stop is TURN or (stop is OUTPUT and not self._paused):
            self._loop.call_soon(self._run)
        elif stop is END:
            self._end()

    def _advance(self) -> Stop:
        machine = self.machine
        stop = machine.advance()
        if machine.unsettled:
            staged = machine.staged_bytes
            if self._rounds.join(self, staged - self._round_bytes, already=self._in_round):
                self._in_round = True
                self._round_bytes = staged
            else:
                machine.settle()
                self._round_bytes = 0
        self._send()
        return stop

    def settle(self) -> None:
        """End this session's part of a commit round. Its writes count even if the connection was lost meanwhile."""
        self._in_round = False
        self._round_bytes = 0
        try:
            self.machine.settle()
        except Exception as error:
            self.abort(f"internal error: {error!r}")
            raise
        self.wake()

    def _group_accepts(self) -> None:
        # Not at once: the group calls this in the middle of its own work.
        self._loop.call_soon(self._after_group)

    def _after_group(self) -> None:
        self._waits_for_group = False
        self._run()

    def _send(self) -> None:
        machine = self.machine
        out = machine.out
        if out:
            machine.out = []
            if self.visitor.tls is not None:
                self._unsent.extend(out)
                self._feed()
            elif len(out) == 1:
                self._transport.write(out[0])
            else:
                self._transport.writelines(out)
        if machine.slow_reads:
            slow, machine.slow_reads = machine.slow_reads, []
            for read in slow:
                self._begin(serve_slowly(machine, read, self._drain))
        if machine.slow_statuses:
            waiting, machine.slow_statuses = machine.slow_statuses, []
            for status in waiting:
                self._begin(serve_status(machine, status))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _feed(self) -> None:
        """Give TLS no more than the client takes: it encrypts at once what it is given, and keeps that."""
        unsent = self._unsent
        while unsent and not self._paused:
            part = unsent.popleft()
            if len(part) > _TLS_SLICE:
                view = memoryview(part)
                unsent.appendleft(view[_TLS_SLICE:])
                part = view[:_TLS_SLICE]
            self._transport.write(part)

    def _refill(self) -> None:
        if not self._ended:
            self._paused = False
            self._feed()
            if not self._paused:
                self._go_on()

    def _unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() + sum(map(len, self._unsent))

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.abort(f"internal error: {error!r}")

    async def _drain(self) -> None:
        """Let others run; return when the client takes more data."""
        await asyncio.sleep(0)
        while self._paused and not self._ended:
            future = self._loop.create_future()
            self._drained.append(future)
            await future

    def _read(self, *, wanted: bool) -> None:
        if wanted is not self._reading and not self._transport.is_closing():
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _end(self) -> None:
        """Close when everything is answered; what is not sent yet still is, if the client takes it."""
        if (self.machine.in_flight or self._in_round) and not self.machine.fault:
            return
        if self._linger is None:
            self._linger = self._loop.call_later(_LINGER_S, self._transport.abort)
        if self._unsent:
            return
        self._ended = True
        self._reason = self.machine.fault
        self._transport.close()
