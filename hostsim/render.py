"""Results as text for people. Owns: wording and tables. Never: decides anything."""

from __future__ import annotations

import datetime

from rich.console import Console
from rich.table import Table

from hostsim.bank import RunResult
from hostsim.bank_report import BankReport
from hostsim.write_verify import VerifyResult


def show_run(console: Console, result: RunResult) -> None:
    """Say what a run of the bank did."""
    console.print(
        f"{result.transfers} transfers, {result.writes} writes acknowledged in {result.seconds:.1f} s; "
        f"the longest wait for an acknowledgement was {result.longest_wait_s:.3f} s"
    )
    for host, writes in result.writes_by_host.items():
        console.print(f"  host {host}: {writes} writes")
    if result.reconnects:
        console.print(f"  connections made again: {result.reconnects}")
    if result.stopped_by:
        console.print(f"ended early: {result.stopped_by}", markup=False)


def show_report(console: Console, report: BankReport) -> None:
    """Say whether the volumes are a consistent copy, how far it goes, and what is missing."""
    if report.formatted:
        console.print(_host_table(report))
        console.print(
            f"money: {report.money_total} of {report.money_expected} ({report.money_visible} as it stands, "
            f"{report.in_clearing} of it between chains)"
        )
        if report.last_issued_ns:
            console.print(f"last write was issued at {_clock(report.last_issued_ns)} UTC")
    if report.recorded:
        console.print(
            f"acknowledged and missing: {report.missing_transfers} transfers, {report.missing_writes} writes, "
            f"{report.rpo_s:.3f} s"
        )
    for violation in report.violations:
        console.print(f"{violation.fault}: {violation.text}", style="red", markup=False)
    if report.violation_count > len(report.violations):
        console.print(f"... and {report.violation_count - len(report.violations)} more")
    if report.nothing_to_judge:
        console.print("NOTHING TO JUDGE: no bank is on these volumes, or its format is not complete", style="bold red")
    elif report.incomplete:
        console.print(f"consistent, but NOT COMPLETE: {report.violations[0].text}", style="bold red")
    elif not report.consistent:
        console.print(f"NOT CONSISTENT: {report.violation_count} violations", style="bold red")
    else:
        console.print("consistent", style="bold green")


def _host_table(report: BankReport) -> Table:
    table = Table("host", "chains", "complete transfers", "begun", "last write issued")
    if report.recorded:
        table.add_column("missing transfers", justify="right")
        table.add_column("missing writes", justify="right")
    for host, chains in sorted(report.by_host().items()):
        row = [
            f"{host} {'mainframe' if chains[0].mainframe else 'open'}",
            str(len(chains)),
            str(sum(chain.transfer for chain in chains)),
            str(sum(chain.begun for chain in chains)),
            _clock(max(chain.issued_ns for chain in chains)),
        ]
        if report.recorded:
            row += [str(sum(c.missing_transfers for c in chains)), str(sum(c.missing_writes for c in chains))]
        table.add_row(*row)
    return table


def show_verify(console: Console, result: VerifyResult) -> None:
    """Say whether everything that was acknowledged can be read."""
    console.print(
        f"{result.acknowledged} writes acknowledged, {result.blocks_checked} blocks read and judged "
        f"({result.whole_reads} times the whole volume), {result.reconnects} reconnects"
    )
    for problem in result.problems:
        console.print(problem, style="red", markup=False)
    if result.stopped_by:
        console.print(f"ended early: {result.stopped_by}", markup=False)
    if result.problem_count:
        console.print(f"LOST OR WRONG: {result.problem_count} blocks", style="bold red")
    else:
        console.print("everything acknowledged can be read", style="bold green")


def _clock(ns: int) -> str:
    if not ns:
        return "-"
    moment = datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC)
    return moment.strftime("%H:%M:%S.%f")
