"""The bank at work: hosts that move money between accounts on several volumes, each write after what it depends on.

Owns: hosts, chains, the vector of what was acknowledged, when to stop. Never: places a write (``bank_layout.py``) or
judges an image (``bank_check.py``).

What a reader would get wrong: ``acknowledged`` is shared by all hosts of the process on purpose. It stands for all that
hosts tell each other: whatever one of them saw acknowledged before another issued a write may have caused that write,
so a copy must not show the second without the first, across volumes, groups and hosts (RC ¶45).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from hostsim.bank_check import check_bank
from hostsim.bank_layout import BankLayout, PlannedWrite, committed, plan_format
from hostsim.bank_record import FLUSH_INTERVAL_S, BankRecorder
from hostsim.errors import BadVolumes, HostError
from hostsim.image import load_used
from hostsim.nbdclient import NbdConnection
from hostsim.paths import HostPath
from hostsim.stamp import Kind, Stamp, decode_superblock_untrusted, encode, encode_superblock

STOP_GRACE_S = 5.0
"""How long writes in flight may still take once the time is up; their outcome is unknown after that."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One simulated host. A mainframe gives a write time with every write, an open host does not (spec §3.3)."""

    number: int
    mainframe: bool


@dataclass(frozen=True, slots=True)
class RunSettings:
    """``seconds`` 0: until stopped. ``pause_s`` is a chain's pause after each transfer. ``patience_s``: see HostPath.

    ``fua_commits``: commit records are written so that they survive power loss, as a database would.
    """

    seconds: float = 0.0
    pause_s: float = 0.0
    patience_s: float = 0.0
    fua_commits: bool = False


@dataclass(slots=True)
class RunResult:
    """What a run did. ``stopped_by``: the error that ended it before its time, "" if none."""

    writes: int = 0
    transfers: int = 0
    seconds: float = 0.0
    longest_wait_s: float = 0.0
    reconnects: int = 0
    stopped_by: str = ""
    acknowledged: list[int] = field(default_factory=list)
    writes_by_host: dict[int, int] = field(default_factory=dict)


async def format_volumes(
    uris: Sequence[str], *, ledgers: int, chains: int, accounts: int, slots: int, block_size: int, seed: int | None
) -> BankLayout:
    """Empty the volumes and make them a bank: everything on the used part is lost. Survives power loss on return.

    Raises BadVolumes if they do not fit, before anything is changed; ConnectFailed, ConnectionLost, CommandFailed.
    """
    connections = [await NbdConnection.connect(uri) for uri in uris]
    try:
        run = secrets.randbits(64)
        superblocks = plan_format(
            [connection.size for connection in connections],
            ledgers=ledgers,
            chains=chains,
            accounts=accounts,
            slots=slots,
            block_size=block_size,
            run=run,
            seed=run if seed is None else seed,
            made_ns=time.time_ns(),
        )
        layout = BankLayout(superblocks[0])
        # The order lets a checker recognise a copy that is cut off in the middle of this.
        for connection in connections:
            await connection.zero(0, block_size)
        for volume, connection in enumerate(connections):
            await connection.zero_all(layout.used_blocks(volume) * block_size)
        for superblock, connection in zip(superblocks, connections, strict=True):
            await connection.write(0, encode_superblock(superblock), fua=False)
        for connection in connections:
            await connection.flush()
        return layout
    finally:
        for connection in connections:
            await connection.close()


class Bank:
    """One run of the workload. Call ``open``, ``run`` once, ``close``."""

    def __init__(self, uris: Sequence[str], hosts: Sequence[HostSpec], settings: RunSettings) -> None:
        self._uris = list(uris)
        self._hosts = [_Host(spec, uris, settings.patience_s) for spec in hosts]
        self._settings = settings
        self._stopping = asyncio.Event()
        self._waiting: dict[tuple[int, int], list[asyncio.Future[None]]] = {}
        self._result = RunResult()
        self._recorder: BankRecorder | None = None
        self._layout: BankLayout | None = None
        self._acknowledged: list[int] = []

    async def open(self) -> BankLayout:
        """Connect all hosts to all volumes and read how far each chain is. Raises BadVolumes, ConnectFailed."""
        for host in self._hosts:
            for path in host.paths:
                await path.open()
            if host.spec.mainframe and not all([(await path.connection()).write_time for path in host.paths]):
                raise BadVolumes("the server does not take write times; run with open hosts only (--hosts open:3)")
        contents = [await load_used(await path.connection()) for path in self._hosts[0].paths]
        report, layout = check_bank(contents)
        if report.violations:
            raise BadVolumes(f"the volumes are no consistent bank: {report.violations[0].text}")
        if layout is None:
            raise BadVolumes("the volumes are not formatted: hostsim format --volume ...")
        if len(self._uris) != layout.volumes:
            raise BadVolumes(f"{layout.volumes} volumes were formatted together, {len(self._uris)} are given")
        self._in_formatted_order(contents)
        self._layout = layout
        self._acknowledged = [state.writes for state in report.chains]
        return layout

    def _in_formatted_order(self, contents: list[bytes]) -> None:
        """Let volumes be named in any order: put every host's paths in the order of `format`."""
        order = {}
        for position, content in enumerate(contents):
            superblock = decode_superblock_untrusted(content)
            assert superblock is not None, "the check found a superblock on each"
            order[superblock.volume] = position
        for host in self._hosts:
            host.paths = [host.paths[order[volume]] for volume in range(len(order))]

    async def run(self, recorder: BankRecorder | None = None) -> RunResult:
        """Work until the time is up, ``stop`` is called, or a path is lost for good; never raises for the last."""
        layout = self._layout
        assert layout is not None, "open() comes first"
        self._recorder = recorder
        if recorder is not None:
            recorder.event(event="start", **{"from": self._acknowledged})
        loop = asyncio.get_running_loop()
        began = loop.time()
        began_at = list(self._acknowledged)
        chains = [
            asyncio.create_task(self._chain(layout, chain, self._hosts[chain % len(self._hosts)]))
            for chain in range(layout.chains)
        ]
        helpers = [asyncio.create_task(self._flush_record())]
        if self._settings.seconds > 0:
            loop.call_later(self._settings.seconds, self._stopping.set)
        await self._stopping.wait()
        self._wake_all()
        _, late = await asyncio.wait(chains, timeout=STOP_GRACE_S)
        for task in [*late, *helpers]:
            task.cancel()
        for ended in await asyncio.gather(*chains, *helpers, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended  # ours: what hosts may meet is a HostError, and a chain ends with it
        if recorder is not None:
            recorder.event(event="end")
        return self._summary(loop.time() - began, began_at)

    def stop(self) -> None:
        """End the run soon: each chain finishes the write it waits for."""
        self._stopping.set()

    async def close(self) -> None:
        """Disconnect all hosts."""
        for host in self._hosts:
            for path in host.paths:
                await path.close()

    async def _chain(self, layout: BankLayout, chain: int, host: _Host) -> None:
        try:
            for write in layout.writes(chain, self._acknowledged[chain]):
                if write.needs is not None:
                    await self._until_acknowledged(*write.needs)
                if self._stopping.is_set():
                    return
                await self._write(layout, chain, host, write)
                if write.kind is Kind.COMMIT and self._settings.pause_s > 0:
                    await asyncio.sleep(self._settings.pause_s)
        except HostError as error:
            # One path that is gone ends the run: every chain goes over every volume.
            self._result.stopped_by = self._result.stopped_by or str(error)
        finally:
            self._stopping.set()

    async def _write(self, layout: BankLayout, chain: int, host: _Host, write: PlannedWrite) -> None:
        issued_ns = time.time_ns()
        write_time = host.write_time(issued_ns)
        stamp = Stamp(
            run=layout.superblock.run,
            kind=write.kind,
            host=host.spec.number,
            chain=chain,
            chains=layout.chains,
            volume=write.volume,
            block=write.block,
            counter=write.counter,
            txn=write.txn,
            issued_ns=issued_ns,
            write_time=write_time or 0,
            seen=tuple(self._acknowledged),
            source=write.source,
            target=write.target,
            amount=write.amount,
            source_balance=write.source_balance,
            target_balance=write.target_balance,
        )
        data = encode(stamp, layout.block_size)
        fua = self._settings.fua_commits and write.kind is Kind.COMMIT
        await host.paths[write.volume].write(write.block * layout.block_size, data, write_time, fua)
        acknowledged_ns = time.time_ns()
        self._acknowledged[chain] = write.counter
        if self._recorder is not None:
            self._recorder.acknowledged(chain, write.counter, acknowledged_ns)
        host.writes += 1
        self._result.longest_wait_s = max(self._result.longest_wait_s, (acknowledged_ns - issued_ns) / 1e9)
        for future in self._waiting.pop((chain, write.counter), ()):
            future.set_result(None)

    async def _until_acknowledged(self, chain: int, counter: int) -> None:
        if self._acknowledged[chain] < counter and not self._stopping.is_set():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault((chain, counter), []).append(future)
            await future

    def _wake_all(self) -> None:
        for futures in self._waiting.values():
            for future in futures:
                future.set_result(None)
        self._waiting.clear()

    async def _flush_record(self) -> None:
        while self._recorder is not None:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            self._recorder.flush()

    def _summary(self, seconds: float, began_at: list[int]) -> RunResult:
        result = self._result
        result.seconds = seconds
        result.acknowledged = list(self._acknowledged)
        result.writes = sum(self._acknowledged) - sum(began_at)
        result.transfers = sum(map(committed, self._acknowledged)) - sum(map(committed, began_at))
        result.writes_by_host = {host.spec.number: host.writes for host in self._hosts}
        result.reconnects = sum(path.reconnects for host in self._hosts for path in host.paths)
        return result


class _Host:
    def __init__(self, spec: HostSpec, uris: Sequence[str], patience_s: float) -> None:
        self.spec = spec
        self.paths = [HostPath(uri, spec.mainframe, patience_s) for uri in uris]
        self.writes = 0
        self._last_ns = 0

    def write_time(self, now_ns: int) -> int | None:
        """Return the time to give with the next write; a mainframe's clock never goes back."""
        if not self.spec.mainframe:
            return None
        self._last_ns = max(self._last_ns, now_ns)
        return self._last_ns
