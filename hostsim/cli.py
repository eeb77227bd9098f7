"""`hostsim`: the command line.

Owns: options, exit codes, signals. Never: rules of the workloads.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console

from hostsim import render
from hostsim.bank import Bank, HostSpec, RunResult, RunSettings, format_volumes
from hostsim.bank_check import check_bank
from hostsim.bank_layout import BankLayout
from hostsim.bank_record import BankRecorder, read_bank_record
from hostsim.bank_report import BankReport
from hostsim.errors import BadRecord, BadVolumes, HostError
from hostsim.image import load_bank, open_source
from hostsim.verify_record import read_verify_record
from hostsim.write_verify import LoadSettings, VerifyResult, WriteVerify, verify

T = TypeVar("T")
EXIT_BAD = 1
EXIT_USAGE = 2
EXIT_LOST = 3
EXIT_EMPTY = 4
SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock")
_EPILOG = f"""Example: hostsim check --volume nbd://b/a1 --volume nbd://b/log --record acks.jsonl

Exit codes:
    0  done and good
  {EXIT_BAD:3}  checked and not good
  {EXIT_USAGE:3}  wrong usage, or volumes or a record that cannot be used
  {EXIT_LOST:3}  a path was lost, or a command refused, before the work was done
  {EXIT_EMPTY:3}  `check`: nothing to judge, because no bank is on the volumes or its format is not complete
"""

app = typer.Typer(
    name="hostsim",
    help="Simulated hosts: workloads on NBD volumes, and checks of what a copy of them shows.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _uri(text: str) -> str:
    """Return an NBD URI as it is. Raises typer.BadParameter."""
    if text.partition("://")[0] not in SCHEMES or "://" not in text:
        raise typer.BadParameter(f"{text!r} is not an NBD URI, like nbd://host/volume")
    return text


Volumes = Annotated[
    list[str],
    typer.Option(
        "--volume", parser=_uri, metavar="URI",
        help="NBD URI of a volume; repeat. The last ones (--ledgers) hold the log.",
    ),
]  # fmt: skip
Images = Annotated[list[str], typer.Option("--volume", help="NBD URI or image file of a volume; repeat, in any order.")]
Hosts = Annotated[str, typer.Option(help="Hosts: kinds `mainframe` (gives write times) and `open`, with numbers.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Reconnect = Annotated[float, typer.Option(help="Seconds to try to get a lost connection back. [0: not at all]")]
DEFAULT_HOSTS = "mainframe:1,open:2"


def parse_hosts(text: str) -> list[HostSpec]:
    """Return the hosts that `mainframe:1,open:2` names. Raises typer.BadParameter."""
    hosts: list[HostSpec] = []
    for part in text.split(","):
        kind, _, number = part.strip().partition(":")
        if kind not in ("mainframe", "open") or not (number or "1").isdecimal():
            raise typer.BadParameter(f"{part!r}: give mainframe:N or open:N, separated by commas", param_hint="--hosts")
        hosts += [HostSpec(len(hosts) + 1 + i, kind == "mainframe") for i in range(int(number or "1"))]
    if not hosts:
        raise typer.BadParameter("there must be at least one host", param_hint="--hosts")
    return hosts


@app.command("format", epilog="Example: hostsim format --volume nbd://h/a1 --volume nbd://h/a2 --volume nbd://h/log")
def format_command(
    volume: Volumes,
    hosts: Hosts = DEFAULT_HOSTS,
    chains: Annotated[int, typer.Option(help="Independent chains of transfers per host; 16 over all at most.")] = 4,
    ledgers: Annotated[int, typer.Option(help="How many of the volumes, the last ones, hold the log.")] = 1,
    accounts: Annotated[int, typer.Option(help="Accounts per chain.")] = 64,
    slots: Annotated[int, typer.Option(help="Transfers per chain that the log remembers.")] = 64,
    block_size: Annotated[int, typer.Option(help="Bytes per account or log record.")] = 4096,
    seed: Annotated[int | None, typer.Option(help="Decides all transfers to come. [random]")] = None,
) -> None:
    """Make volumes a bank. What was on them is lost."""
    work = format_volumes(
        volume,
        ledgers=ledgers,
        chains=chains * len(parse_hosts(hosts)),
        accounts=accounts,
        slots=slots,
        block_size=block_size,
        seed=seed,
    )
    layout = _run(work)
    print(f"formatted {layout.volumes} volumes for {layout.chains} chains; run {layout.superblock.run:016x}")


@app.command("run", epilog="Example: hostsim run --volume nbd://h/a1 ... --seconds 30 --record acks.jsonl")
def run_command(
    volume: Volumes,
    hosts: Hosts = DEFAULT_HOSTS,
    chains: Annotated[int | None, typer.Option(help="Chains per host. [as formatted]")] = None,
    seconds: Annotated[float, typer.Option(help="How long; 0: until SIGINT or SIGTERM.")] = 10.0,
    record: Annotated[Path | None, typer.Option(help="File that keeps what was acknowledged.")] = None,
    pause_ms: Annotated[float, typer.Option(help="Pause of a chain after each transfer.")] = 0.0,
    reconnect: Reconnect = 0.0,
    fua: Annotated[bool, typer.Option("--fua", help="Commit records survive power loss (FUA).")] = False,
    as_json: Json = False,
) -> None:
    """Move money. Goes on where the volumes are; ends with code 3 if a path is lost."""
    settings = RunSettings(seconds, pause_ms / 1000, reconnect, fua)
    bank = Bank(volume, parse_hosts(hosts), settings)
    result = _run(_run_bank(bank, chains, len(parse_hosts(hosts)), record))
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        render.show_run(_console(), result)
    if result.stopped_by:
        raise typer.Exit(EXIT_LOST)


async def _run_bank(bank: Bank, chains: int | None, hosts: int, record: Path | None) -> RunResult:
    try:
        layout = await bank.open()
        _check_chains(layout, chains, hosts)
        recorder = BankRecorder.open(record, layout.superblock.run) if record is not None else None
        _on_signals(bank.stop)
        try:
            return await bank.run(recorder)
        finally:
            if recorder is not None:
                recorder.close()
    finally:
        await bank.close()


def _check_chains(layout: BankLayout, chains: int | None, hosts: int) -> None:
    if chains is not None and chains * hosts != layout.chains:
        raise BadVolumes(
            f"the volumes are formatted for {layout.chains} chains, not for {hosts} hosts with {chains} each; leave "
            "--chains out, or format them again"
        )


@app.command("check", epilog="Example: hostsim check --volume nbd://b/a1 ... --record acks.jsonl --json")
def check_command(
    volume: Images,
    record: Annotated[Path | None, typer.Option(help="Record of the run: says what is missing.")] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Not good if anything acknowledged is missing.")] = False,
    as_json: Json = False,
) -> None:
    """Say whether volumes or images of them are a consistent copy, and up to where. Code 1 if they are not."""
    if lossless and record is None:
        raise typer.BadParameter("--lossless needs --record")
    report = _run(_check(volume, record, lossless))
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        render.show_report(_console(), report)
    if report.nothing_to_judge:
        raise typer.Exit(EXIT_EMPTY)
    if not report.consistent:
        raise typer.Exit(EXIT_BAD)


async def _check(volumes: list[str], record: Path | None, lossless: bool) -> BankReport:
    known = None if record is None else read_bank_record(record)
    return check_bank(await load_bank(volumes), known, lossless=lossless)[0]


@app.command("write-verify", epilog="Example: hostsim write-verify --volume nbd://h/v --record w.jsonl --seconds 20")
def write_verify_command(
    volume: Annotated[str, typer.Option(parser=_uri, metavar="URI", help="NBD URI of the volume.")],
    record: Annotated[Path, typer.Option(help="File that keeps every write and its outcome; continued if it exists.")],
    seconds: Annotated[float, typer.Option(help="How long; 0: until SIGINT or SIGTERM.")] = 10.0,
    depth: Annotated[int, typer.Option(help="Commands in flight.")] = 8,
    block_size: Annotated[int, typer.Option(help="Bytes per stamped block.")] = 4096,
    blocks: Annotated[int, typer.Option(help="Use this many blocks at most, from the volume's start.")] = 4096,
    blocks_per_write: Annotated[int, typer.Option(help="Blocks in the longest command.")] = 8,
    mainframe: Annotated[bool, typer.Option("--mainframe", help="Give a write time with every write.")] = False,
    pause_ms: Annotated[float, typer.Option(help="Pause after each command, for each of --depth.")] = 0.0,
    reconnect: Reconnect = 0.0,
    seed: Annotated[int, typer.Option(help="Decides the commands.")] = 0,
    as_json: Json = False,
) -> None:
    """Write at random and remember what was acknowledged; reads and judges all of it after a lost connection."""
    settings = LoadSettings(
        seconds=seconds,
        depth=depth,
        block_size=block_size,
        blocks_max=blocks,
        blocks_per_write=blocks_per_write,
        mainframe=mainframe,
        pause_s=pause_ms / 1000,
        patience_s=reconnect,
        seed=seed,
    )
    result = _run(_run_load(WriteVerify(volume, record, settings)))
    _finish_verify(result, as_json)
    if result.stopped_by:
        raise typer.Exit(EXIT_LOST)


async def _run_load(load: WriteVerify) -> VerifyResult:
    try:
        await load.open()
        _on_signals(load.stop)
        return await load.run()
    finally:
        await load.close()


@app.command("verify", epilog="Example: hostsim verify --volume nbd://h/v --record w.jsonl")
def verify_command(
    volume: Annotated[str, typer.Option(help="NBD URI or image file of the volume.")],
    record: Annotated[Path, typer.Option(help="Record of `hostsim write-verify`.")],
    as_json: Json = False,
) -> None:
    """Read everything back: each acknowledged write must be there. Code 1 if one is not."""
    _finish_verify(_run(_verify(volume, record)), as_json)


async def _verify(volume: str, record: Path) -> VerifyResult:
    known = read_verify_record(record)
    source = await open_source(volume)
    try:
        return await verify(source, known)
    finally:
        await source.close()


def _finish_verify(result: VerifyResult, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        render.show_verify(_console(), result)
    if result.problem_count:
        raise typer.Exit(EXIT_BAD)


def _console() -> Console:
    """Return where results go; a file or a pipe gets whole lines."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; an expected error becomes one line on stderr and an exit code."""
    try:
        return uvloop.run(work)
    except HostError as error:
        Console(stderr=True).print(f"hostsim: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_USAGE if isinstance(error, (BadVolumes, BadRecord)) else EXIT_LOST) from None


def main() -> None:
    """Entry point of the `hostsim` command."""
    app()
