"""Says whether an image of the bank's volumes is a consistent cut. Pure: bytes go in, a report comes out.

Owns: the rules. Never: reads a volume; trusts a controller's word, or the code that wrote the blocks beyond the plan.

With n(c) = the highest write of chain c that is visible anywhere, an image is a consistent cut if
  1. every block is valid, and shows exactly the last of the writes 1..n(c) of its chain that went there (prefix, I1);
  2. no visible write's ``seen`` names more writes of any chain than n of that chain (cut across groups and hosts, I5);
  3. nothing is taken in by a chain that its sender had not committed (the same, by what the money means);
  4. all money is there once each half-done transfer is rolled forward from its intent, and also if rolled back.
1 and 2 together are exact: the image then equals the writes of a set closed under "was acknowledged before". 3 and 4
say it again from the application's side and do not use the plan's balances; those are compared with the plan as well.

A block that was never written is all zeros and counts as write 0: an account with its initial balance, an empty slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hostsim.bank_layout import (
    CLEARING,
    CLEARING_ROUND,
    INITIAL_BALANCE,
    REPLAY_WRITES_MAX,
    STEPS,
    BankLayout,
    committed,
    step_of,
)
from hostsim.bank_record import BankRecord
from hostsim.bank_report import BankReport, ChainState, Fault, Violation
from hostsim.stamp import (
    BLOCK_SIZES,
    CHAINS_MAX,
    TRACE,
    Kind,
    Stamp,
    StampError,
    Superblock,
    decode_superblock_untrusted,
    decode_untrusted,
)

Content = bytes | memoryview
SUPERBLOCK_READ_BYTES = max(BLOCK_SIZES)


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a block must show: write ``counter`` of its chain, and the account's balance where it is an account."""

    counter: int
    balance: int | None


def check_bank(
    contents: Sequence[Content], record: BankRecord | None = None, *, lossless: bool = False
) -> tuple[BankReport, BankLayout | None]:
    """Check the volumes' contents (at least the used blocks of each, in any order).

    ``lossless``: acknowledged writes that are missing are a violation too, as on the synchronous leg's far side.
    Returns the report and the plan, None if the volumes are not (completely) formatted.
    """
    report = BankReport()
    ordered = _formatted(contents, report)
    if ordered is None:
        report.foreign = not report.consistent and not any(TRACE in bytes(content) for content in contents)
        if record is not None:  # the copy is older than the format: everything recorded is missing
            report.run = record.run
            report.chains = [ChainState(chain) for chain in sorted(record.chains)]
            _measure(record, report.chains, report, lossless)
        return report, None
    superblocks, blocks = ordered
    layout = BankLayout(superblocks[0])
    report.formatted = True
    report.run = layout.superblock.run
    visible = _visible(layout, blocks, report)
    states = _chain_states(layout, visible, report)
    report.chains = states
    report.last_issued_ns = max((stamp.issued_ns for stamp in visible.values()), default=0)
    _check_prefix(layout, visible, states, report)
    _check_cut(visible, states, report)
    _check_clearing(layout, states, report)
    _check_money(layout, visible, states, report)
    if record is not None:
        _measure(record, states, report, lossless)
    return report, layout


def _formatted(contents: Sequence[Content], report: BankReport) -> tuple[list[Superblock], list[Content]] | None:
    """Find the volumes' order by their superblocks. None: the image is from before or during `format`, or unusable."""
    found: dict[int, tuple[Superblock, Content]] = {}
    missing = 0
    for position, content in enumerate(contents):
        try:
            superblock = decode_superblock_untrusted(bytes(content[:SUPERBLOCK_READ_BYTES]))
        except StampError as error:
            report.add(Violation(Fault.FORMAT, f"volume {position + 1}: {error}", position, 0))
            continue
        if superblock is None:
            missing += 1
        elif superblock.volume in found:
            report.add(Violation(Fault.FORMAT, f"volume {position + 1} is the same as another one", position, 0))
        else:
            found[superblock.volume] = (superblock, content)
    if report.violation_count:
        return None
    if missing:
        # `format` empties all volumes, then writes the superblocks in order, and only then is anything else written.
        in_order = sorted(found) == list(range(len(found)))
        if not in_order or not all(_only_superblock(content) for content in contents):
            text = f"{missing} of {len(contents)} volumes have no superblock, yet later writes are there"
            report.add(Violation(Fault.FORMAT, text))
        return None
    superblocks = [found[volume][0] for volume in sorted(found)]
    first = superblocks[0]
    if len(superblocks) != first.volumes or any(other.run != first.run for other in superblocks):
        text = f"{len(superblocks)} volumes were given; they are not the {first.volumes} volumes of one set"
        report.add(Violation(Fault.FORMAT, text))
        return None
    return superblocks, [found[volume][1] for volume in sorted(found)]


def _only_superblock(content: Content) -> bool:
    superblock = decode_superblock_untrusted(bytes(content[:SUPERBLOCK_READ_BYTES]))
    rest = bytes(content[superblock.block_size if superblock else 0 :])
    return rest == bytes(len(rest))


def _visible(layout: BankLayout, contents: list[Content], report: BankReport) -> dict[tuple[int, int], Stamp]:
    """Decode every block that was ever written, by (volume, block)."""
    size = layout.block_size
    empty = bytes(size)
    visible: dict[tuple[int, int], Stamp] = {}
    for volume, content in enumerate(contents):
        for block in range(1, layout.used_blocks(volume)):
            data = bytes(content[block * size : (block + 1) * size])
            if data == empty:
                continue
            try:
                stamp = decode_untrusted(data)
            except StampError as error:
                report.add(Violation(Fault.DAMAGED, f"volume {volume + 1} block {block}: {error}", volume, block))
                continue
            problem = _misplaced(layout, stamp, volume, block)
            if problem:
                text = f"volume {volume + 1} block {block}: {problem}"
                report.add(Violation(Fault.FOREIGN, text, volume, block, stamp.chain))
            else:
                visible[volume, block] = stamp
    return visible


def _misplaced(layout: BankLayout, stamp: Stamp, volume: int, block: int) -> str:
    """Return why a valid block cannot be at this place, "" if it can."""
    if stamp.run != layout.superblock.run:
        return f"is of another run ({stamp.run:016x})"
    if (stamp.volume, stamp.block) != (volume, block):
        return f"was written to volume {stamp.volume + 1} block {stamp.block}"
    if stamp.chain >= layout.chains or not 1 <= stamp.counter <= REPLAY_WRITES_MAX:
        return f"names write {stamp.counter} of chain {stamp.chain}, which there cannot be"
    if (stamp.txn, stamp.kind) != step_of(stamp.counter):
        return f"says transfer {stamp.txn} {stamp.kind.name.lower()}, and counts as write {stamp.counter}"
    if stamp.source >= layout.accounts or stamp.target >= layout.accounts:
        return f"names accounts {stamp.source} and {stamp.target}, of which there are {layout.accounts}"
    return ""


def _chain_states(layout: BankLayout, visible: dict[tuple[int, int], Stamp], report: BankReport) -> list[ChainState]:
    states = [ChainState(chain) for chain in range(layout.chains)]
    heads: dict[int, Stamp] = {}
    for stamp in visible.values():
        if stamp.chain not in heads or stamp.counter > heads[stamp.chain].counter:
            heads[stamp.chain] = stamp
    for chain, head in heads.items():
        states[chain] = ChainState(
            chain,
            writes=head.counter,
            transfer=committed(head.counter),
            begun=head.kind is not Kind.COMMIT,
            host=head.host,
            mainframe=head.write_time > 0,
            issued_ns=head.issued_ns,
        )
    return states


def _check_prefix(
    layout: BankLayout, visible: dict[tuple[int, int], Stamp], states: list[ChainState], report: BankReport
) -> None:
    """Rule 1: each block shows the last write of its chain's prefix that went there, with the planned content."""
    for state in states:
        expected = _expected(layout, state.chain, state.writes)
        owned = {place for place, stamp in visible.items() if stamp.chain == state.chain}
        for place in sorted(owned | expected.keys()):
            stamp = visible.get(place)
            want = expected.get(place)
            counter = stamp.counter if stamp is not None else 0
            volume, block = place
            where = f"volume {volume + 1} block {block}: chain {state.chain}"
            if want is None or counter > want.counter:
                report.add(Violation(Fault.FOREIGN, f"{where}: write {counter} never went there", *place, state.chain))
            elif stamp is None or counter < want.counter:
                txn, kind = step_of(want.counter)
                text = (
                    f"{where}: write {want.counter} (transfer {txn}, {kind.name.lower()}) is missing, the block shows "
                    f"{f'write {counter}' if counter else 'nothing'}; yet write {state.writes} of the chain is there"
                )
                report.add(Violation(Fault.MISSING_WRITE, text, *place, state.chain))
            else:
                _check_content(layout, stamp, want, where, report)


def _check_content(layout: BankLayout, stamp: Stamp, want: _Expected, where: str, report: BankReport) -> None:
    transfer = layout.transfer(stamp.chain, stamp.txn)
    planned = (transfer.source, transfer.target, transfer.amount)
    balance = stamp.target_balance if stamp.kind is Kind.CREDIT else stamp.source_balance
    if (stamp.source, stamp.target, stamp.amount) != planned or want.balance not in (None, balance):
        text = f"{where}: write {stamp.counter} has another content than it was issued with"
        report.add(Violation(Fault.WRONG_CONTENT, text, stamp.volume, stamp.block, stamp.chain))


def _expected(layout: BankLayout, chain: int, writes: int) -> dict[tuple[int, int], _Expected]:
    """Return what each block that writes 1..``writes`` of a chain went to must show."""
    balances = [INITIAL_BALANCE] * layout.accounts
    counters = [0] * layout.accounts
    last_txn, step = step_of(writes) if writes else (0, Kind.COMMIT)
    transfer_of = layout.transfer
    for txn in range(1, last_txn + 1):
        transfer = transfer_of(chain, txn)
        if txn < last_txn or step >= Kind.DEBIT:
            balances[transfer.source] -= transfer.amount
            counters[transfer.source] = (txn - 1) * STEPS + Kind.DEBIT
        if txn < last_txn or step >= Kind.CREDIT:
            balances[transfer.target] += transfer.amount
            counters[transfer.target] = (txn - 1) * STEPS + Kind.CREDIT
    expected = {
        layout.account_place(chain, account): _Expected(counters[account], balances[account])
        for account in range(layout.accounts)
        if counters[account]
    }
    for txn in range(max(1, last_txn - layout.slots), last_txn + 1):
        for kind in (Kind.INTENT, Kind.COMMIT):
            counter = (txn - 1) * STEPS + kind
            if counter <= writes:
                expected[layout.log_place(chain, txn, kind)] = _Expected(counter, None)
    return expected


def _check_cut(visible: dict[tuple[int, int], Stamp], states: list[ChainState], report: BankReport) -> None:
    """Rule 2: whatever was acknowledged before a visible write was issued is visible too."""
    reached = tuple(state.writes for state in states) + (0,) * (CHAINS_MAX - len(states))
    for (volume, block), stamp in visible.items():
        if all(map(int.__le__, stamp.seen, reached)):
            continue
        for other, (seen, there) in enumerate(zip(stamp.seen, reached, strict=True)):
            if seen > there:
                text = (
                    f"volume {volume + 1} block {block}: write {stamp.counter} of chain {stamp.chain} is there, but "
                    f"write {seen} of chain {other}, acknowledged before it was issued, is not (it ends at {there})"
                )
                report.add(Violation(Fault.LOST_PREDECESSOR, text, volume, block, stamp.chain))


def _check_clearing(layout: BankLayout, states: list[ChainState], report: BankReport) -> None:
    """Rule 3: the last thing each chain took in from each other one was sent; what came before, was sent before."""
    for state in states:
        last_txn = step_of(state.writes)[0] if state.writes else 0
        for txn in range(last_txn, max(0, last_txn - CLEARING_ROUND * layout.chains), -1):
            needs = layout.transfer(state.chain, txn).needs
            if needs is not None and states[needs[0]].writes < needs[1]:
                text = f"chain {state.chain} took in, in transfer {txn}, what chain {needs[0]} had not sent"
                report.add(Violation(Fault.CLEARING, text, chain=state.chain))


def _check_money(
    layout: BankLayout, visible: dict[tuple[int, int], Stamp], states: list[ChainState], report: BankReport
) -> None:
    """Rule 4, from the blocks alone: a half-done transfer is completed, or undone, with the balances in its intent."""
    report.money_expected = layout.chains * layout.accounts * INITIAL_BALANCE
    for state in states:
        chain = state.chain
        balances = [_balance(visible.get(layout.account_place(chain, a))) for a in range(layout.accounts)]
        report.money_visible += sum(balances)
        intents = [
            stamp
            for slot in range(layout.slots)
            if (stamp := visible.get(layout.log_place(chain, slot, Kind.INTENT))) is not None
        ]
        forward, back = balances, list(balances)
        if intents:
            last = max(intents, key=lambda stamp: stamp.txn)
            commit = visible.get(layout.log_place(chain, last.txn, Kind.COMMIT))
            if commit is None or commit.txn < last.txn:
                forward[last.source], forward[last.target] = last.source_balance, last.target_balance
                back[last.source] = last.source_balance + last.amount
                back[last.target] = last.target_balance - last.amount
        report.money_total += sum(forward)
        report.money_rolled_back += sum(back)
        report.in_clearing += forward[CLEARING] - INITIAL_BALANCE
    for total, how in ((report.money_total, "forward"), (report.money_rolled_back, "back")):
        if total != report.money_expected:
            text = f"the accounts hold {total}, half-done transfers rolled {how}; it must be {report.money_expected}"
            report.add(Violation(Fault.MONEY, text))


def _balance(stamp: Stamp | None) -> int:
    if stamp is None:
        return INITIAL_BALANCE
    return stamp.target_balance if stamp.kind is Kind.CREDIT else stamp.source_balance


def _measure(record: BankRecord, states: list[ChainState], report: BankReport, lossless: bool) -> None:
    """Compare with what the host saw acknowledged: what is missing, and is anything there that was never issued."""
    report.recorded = True
    if record.run != report.run:
        text = f"the record is of run {record.run:016x}, the volumes are of run {report.run:016x}"
        report.add(Violation(Fault.FOREIGN, text))
        return
    oldest_missing_ns: int | None = None
    for state in states:
        known = record.chains.get(state.chain)
        if known is None:
            continue
        state.missing_writes = max(0, known.last - state.writes)
        state.missing_transfers = max(0, committed(known.last) - state.transfer)
        state.beyond_record = max(0, state.writes - known.last)
        if state.missing_writes:
            index = max(0, state.writes + 1 - known.first)
            if index < len(known.times_ns):
                oldest_missing_ns = min(oldest_missing_ns or known.times_ns[index], known.times_ns[index])
        if state.beyond_record > 1 and record.complete:
            text = f"chain {state.chain}: write {state.writes} is there; its host issued {known.last + 1} at most"
            report.add(Violation(Fault.NEVER_ISSUED, text, chain=state.chain))
    report.missing_writes = sum(state.missing_writes for state in states)
    report.missing_transfers = sum(state.missing_transfers for state in states)
    if oldest_missing_ns is not None:
        report.rpo_s = (record.last_ns - oldest_missing_ns) / 1e9
    if lossless and report.missing_writes:
        text = f"{report.missing_writes} acknowledged writes ({report.missing_transfers} whole transfers) are missing"
        report.add(Violation(Fault.NOT_ACKNOWLEDGED_ALL, text))
