"""Random writes to one volume, each remembered, and the proof that none that was acknowledged is ever lost (I9).

Owns: what is written where, reading it back while running, after a lost connection, and at the end. Never: judges a
block (``ledger.py``).

One connection, several commands in flight, never two on one block. When the connection is lost and comes back, the
whole volume is read and judged before anything else is written: that is the moment after a crash.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from hostsim.errors import BadRecord, BadVolumes, CommandFailed, ConnectionLost, HostError
from hostsim.image import Source
from hostsim.ledger import Issued, Ledger, WrongBlock, decode_block_untrusted, encode_block
from hostsim.nbdclient import READ_CHUNK_BYTES, NbdConnection
from hostsim.paths import HostPath
from hostsim.verify_record import VerifyRecord, VerifyRecorder, read_verify_record

PROBLEMS_KEPT_MAX = 50


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """The load. Shares are in percent of all commands; what remains are writes of 1 to ``blocks_per_write`` blocks."""

    seconds: float = 0.0
    depth: int = 8
    block_size: int = 4096
    blocks_max: int = 4096
    blocks_per_write: int = 8
    reads: int = 10
    zeroes: int = 5
    flushes: int = 1
    mainframe: bool = False
    pause_s: float = 0.0
    patience_s: float = 0.0
    seed: int = 0


@dataclass(slots=True)
class VerifyResult:
    """What was done and found. ``problems`` is empty if every read showed what it may."""

    commands: int = 0
    acknowledged: int = 0
    blocks_checked: int = 0
    whole_reads: int = 0
    reconnects: int = 0
    stopped_by: str = ""
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Count a problem and keep the first ones."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_KEPT_MAX:
            self.problems.append(text)


async def verify(source: Source, record: VerifyRecord) -> VerifyResult:
    """Read everything back and judge it. Raises ConnectionLost or CommandFailed: then nothing is said."""
    result = VerifyResult(acknowledged=record.ledger.acknowledged)
    if source.size < record.ledger.blocks * record.block_size:
        raise BadRecord(f"the record is of a volume of {record.ledger.blocks * record.block_size} bytes or more")
    data = await source.read_all(record.ledger.blocks * record.block_size)
    _judge(record, 0, data, result, None)
    result.whole_reads = 1
    return result


def _judge(
    record: VerifyRecord, first: int, data: bytes, result: VerifyResult, recorder: VerifyRecorder | None
) -> None:
    """Judge the blocks from ``first`` on, of which no write is in flight."""
    size = record.block_size
    ledger = record.ledger
    for block in range(first, first + len(data) // size):
        at = (block - first) * size
        result.blocks_checked += 1
        try:
            counter = decode_block_untrusted(data[at : at + size], record.run, block)
        except WrongBlock as error:
            result.problem(f"block {block}: {error}")
            continue
        unsettled = ledger.unsettled(block)
        wrong = ledger.seen(block, counter)
        if wrong:
            result.problem(f"block {block}: {wrong}")
        elif unsettled and recorder is not None:
            recorder.seen(block, counter)


class WriteVerify:
    """One run of the load. Call ``open``, ``run`` once, ``close``."""

    def __init__(self, uri: str, record_path: Path, settings: LoadSettings) -> None:
        self._settings = settings
        self._record_path = record_path
        self._random = random.Random(settings.seed)
        self._path = HostPath(uri, settings.mainframe, settings.patience_s)
        self._result = VerifyResult()
        self._stopping = asyncio.Event()
        self._busy: set[int] = set()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._recovering = asyncio.Lock()
        self._connection: NbdConnection | None = None
        self._record: VerifyRecord | None = None
        self._recorder: VerifyRecorder | None = None

    async def open(self) -> None:
        """Connect; empty the volume for a new record, or check it against an existing one, which is continued.

        Raises ConnectFailed, BadVolumes, BadRecord.
        """
        connection = await self._path.open()
        self._connection = connection
        if self._settings.mainframe and not connection.write_time:
            raise BadVolumes("the server does not take write times; leave --mainframe out")
        blocks = min(self._settings.blocks_max, connection.size // self._settings.block_size)
        if blocks < self._settings.blocks_per_write:
            raise BadVolumes(f"the volume has {blocks} blocks; writes have up to {self._settings.blocks_per_write}")
        continued = self._record_path.exists() and self._record_path.stat().st_size > 0
        if continued:
            self._record = read_verify_record(self._record_path)
            self._recorder = VerifyRecorder(self._record_path)
            self._recorder.resume()
            await self._check_all(connection, self._record, self._recorder)
            return
        run = secrets.randbits(64)
        await connection.zero_all(blocks * self._settings.block_size)
        self._record = VerifyRecord(run, self._settings.block_size, Ledger(blocks))
        self._recorder = VerifyRecorder(self._record_path)
        self._recorder.begin(run, self._settings.block_size, blocks)

    async def run(self) -> VerifyResult:
        """Work until the time is up, ``stop`` is called, the path is lost for good, or something is wrong."""
        record, recorder = self._record, self._recorder
        assert record is not None
        assert recorder is not None, "open() comes first"
        workers = [asyncio.create_task(self._work(record, recorder)) for _ in range(self._settings.depth)]
        if self._settings.seconds > 0:
            asyncio.get_running_loop().call_later(self._settings.seconds, self._stopping.set)
        await self._stopping.wait()
        await asyncio.wait(workers, timeout=5.0)
        for task in workers:
            task.cancel()
        for ended in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended  # ours: what a host may meet is a HostError, and a worker ends with it
        recorder.close()
        self._result.acknowledged = record.ledger.acknowledged
        self._result.reconnects = self._path.reconnects
        return self._result

    def stop(self) -> None:
        """End the run soon."""
        self._stopping.set()

    async def close(self) -> None:
        """Disconnect."""
        await self._path.close()

    async def _work(self, record: VerifyRecord, recorder: VerifyRecorder) -> None:
        try:
            while not self._stopping.is_set() and not self._result.problems:
                connection = self._connection
                assert connection is not None
                try:
                    await self._command(connection, record, recorder)
                except ConnectionLost:
                    if self._settings.patience_s <= 0:
                        raise
                    await self._recover(connection, record, recorder)
                if self._settings.pause_s > 0:
                    await asyncio.sleep(self._settings.pause_s)
        except HostError as error:
            self._result.stopped_by = self._result.stopped_by or str(error)
        finally:
            self._stopping.set()

    async def _command(self, connection: NbdConnection, record: VerifyRecord, recorder: VerifyRecorder) -> None:
        """Do one command on blocks that no other command is on."""
        draw = self._random.randrange(100)
        count = self._random.randint(1, self._settings.blocks_per_write)
        block = self._random.randrange(record.ledger.blocks - count + 1)
        blocks = range(block, block + count)
        if not self._busy.isdisjoint(blocks):
            await asyncio.sleep(0)
            return
        self._busy.update(blocks)
        self._in_flight += 1
        self._idle.clear()
        self._result.commands += 1
        reads, zeroes = self._settings.reads, self._settings.zeroes
        try:
            if draw < reads:
                data = await connection.read(block * record.block_size, count * record.block_size)
                _judge(record, block, data, self._result, recorder)
            elif draw < reads + self._settings.flushes:
                await connection.flush()
            else:
                zero = draw < reads + self._settings.flushes + zeroes
                await self._write(connection, record, recorder, blocks, zero)
        finally:
            self._busy.difference_update(blocks)
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def _write(
        self, connection: NbdConnection, record: VerifyRecord, recorder: VerifyRecorder, blocks: range, zero: bool
    ) -> None:
        size = record.block_size
        write = Issued(record.ledger.last_counter + 1, blocks.start, len(blocks), zero)
        record.ledger.issue(write)
        recorder.issued(write)
        try:
            if zero:
                await connection.zero(blocks.start * size, len(blocks) * size)
            else:
                data = b"".join([encode_block(record.run, block, write.counter, size) for block in blocks])
                await connection.write(blocks.start * size, data, time.time_ns())
        except (ConnectionLost, CommandFailed, asyncio.CancelledError):
            record.ledger.lose(write.counter)
            recorder.lost(write.counter)
            raise
        record.ledger.acknowledge(write.counter)
        recorder.acknowledged(write.counter)

    async def _recover(self, lost: NbdConnection, record: VerifyRecord, recorder: VerifyRecorder) -> None:
        """Get the connection back and judge the whole volume; the first worker to come does it for all."""
        async with self._recovering:
            if self._connection is not lost:
                return
            await self._idle.wait()  # all commands of the lost connection have ended, their writes are noted as lost
            while True:
                connection = await self._path.connection()
                try:
                    await self._check_all(connection, record, recorder)
                    break
                except ConnectionLost:
                    continue  # it crashed again, and patience begins again
            self._connection = connection

    async def _check_all(self, connection: NbdConnection, record: VerifyRecord, recorder: VerifyRecorder) -> None:
        step = READ_CHUNK_BYTES // record.block_size
        for first in range(0, record.ledger.blocks, step):
            count = min(step, record.ledger.blocks - first)
            data = await connection.read(first * record.block_size, count * record.block_size)
            _judge(record, first, data, self._result, recorder)
        self._result.whole_reads += 1
