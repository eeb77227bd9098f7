"""The bank's plan: which transfers a chain makes, and where each write goes. Pure: a function of the superblock.

Owns: placement of accounts and log slots, the sequence of transfers and their amounts. Never: input or output, chance.

A *chain* is a sequence of writes of which each is issued only after the one before was acknowledged. Write number ``n``
(from 1) of chain ``c`` is step ``(n-1) % 4`` of transfer ``(n-1) // 4 + 1``: intent to the log, debit, credit, commit
to the log. Everything about it but its time follows from (seed, c, n). So a checker that knows how far a chain got,
knows for every block which write must be visible in it: the image is a prefix of the chain, or it is not.

A block belongs to one chain only. Account 0 of every chain is its *clearing account*: in every eighth transfer the
chain sends money to another chain through it, and four transfers later it takes in what some other chain sent
``CLEARING_DELAY`` rounds ago, waiting for that if need be. Chains run on different hosts, so effects cross over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hostsim.errors import BadVolumes
from hostsim.stamp import BLOCK_SIZES, CHAINS_MAX, Kind, Superblock

STEPS = 4
INITIAL_BALANCE = 1_000_000
AMOUNT_MAX = 100
ACCOUNTS_MAX = 0xFFFF
SLOTS_MAX = 1 << 24
CLEARING = 0
CLEARING_ROUND = 8
CLEARING_SEND = 3
CLEARING_RECEIVE = 7
CLEARING_DELAY = 4
REPLAY_WRITES_MAX = 1 << 30
"""A chain longer than this is not checked write by write; months of writing, or a damaged counter."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Transfer:
    """One transfer within a chain. ``needs``: (chain, counter) of a write to be acknowledged before it starts."""

    source: int
    target: int
    amount: int
    needs: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class PlannedWrite:
    """What one write of a chain is: everything of its stamp that does not depend on the moment."""

    counter: int
    txn: int
    kind: Kind
    volume: int
    block: int
    source: int
    target: int
    amount: int
    source_balance: int
    target_balance: int
    needs: tuple[int, int] | None


def step_of(counter: int) -> tuple[int, Kind]:
    """Return (transfer number from 1, step) of a chain's write ``counter`` (from 1)."""
    txn, step = divmod(counter - 1, STEPS)
    return txn + 1, Kind(step + 1)


def committed(counter: int) -> int:
    """Return how many transfers are complete once a chain's write ``counter`` is done."""
    return counter // STEPS


class BankLayout:
    """The plan for one formatted set of volumes."""

    def __init__(self, superblock: Superblock) -> None:
        self.superblock = superblock
        self.chains = superblock.chains
        self.accounts = superblock.accounts
        self.slots = superblock.slots
        self.block_size = superblock.block_size
        self.volumes = superblock.volumes
        self.ledgers = superblock.ledgers
        self.account_volumes = superblock.volumes - superblock.ledgers

    def account_place(self, chain: int, account: int) -> tuple[int, int]:
        """Return (volume, block) of a chain's account; neighbours lie on different volumes."""
        block, volume = divmod(chain * self.accounts + account, self.account_volumes)
        return volume, 1 + block

    def log_place(self, chain: int, txn: int, kind: Kind) -> tuple[int, int]:
        """Return (volume, block) of a transfer's intent or commit; a slot is used again after ``slots`` transfers."""
        row, ledger = divmod(chain, self.ledgers)
        slot = row * self.slots + txn % self.slots
        return self.account_volumes + ledger, 1 + 2 * slot + (kind is Kind.COMMIT)

    def used_blocks(self, volume: int) -> int:
        """Return how many blocks of a volume the bank uses, counted from block 0, the superblock."""
        if volume < self.account_volumes:
            return 1 + -(-self.chains * self.accounts // self.account_volumes)
        return 1 + 2 * self.slots * -(-self.chains // self.ledgers)

    def transfer(self, chain: int, txn: int) -> Transfer:
        """Return transfer ``txn`` (from 1) of a chain."""
        draw = _mix(self.superblock.seed, chain, txn)
        customer = 1 + (draw & 0xFFFFFF) % (self.accounts - 1)
        amount = 1 + (draw >> 48) % AMOUNT_MAX
        turn, phase = divmod(txn, CLEARING_ROUND)
        if self.chains > 1:
            if phase == CLEARING_SEND:
                return Transfer(customer, CLEARING, amount)
            if phase == CLEARING_RECEIVE and turn >= CLEARING_DELAY:
                sender, sent = self.received(chain, turn - CLEARING_DELAY)
                paid = 1 + (_mix(self.superblock.seed, sender, sent) >> 48) % AMOUNT_MAX
                return Transfer(CLEARING, customer, paid, (sender, sent * STEPS))
        other = 1 + (customer + (draw >> 24 & 0xFFFFFF) % (self.accounts - 2)) % (self.accounts - 1)
        return Transfer(customer, self._elsewhere(customer, other), amount)

    def received(self, chain: int, turn: int) -> tuple[int, int]:
        """Return (chain, transfer) whose money a chain takes in ``CLEARING_DELAY`` rounds after round ``turn``."""
        # In each round the chains are matched one to one, each round differently.
        sender = (chain - 1 - turn % (self.chains - 1)) % self.chains
        return sender, turn * CLEARING_ROUND + CLEARING_SEND

    def _elsewhere(self, customer: int, other: int) -> int:
        """Return ``other``, or its neighbour where both accounts would lie on one volume: transfers cross volumes."""
        if (other - customer) % self.account_volumes == 0:
            neighbour = other % (self.accounts - 1) + 1
            if neighbour != customer:
                return neighbour
        return other

    def writes(self, chain: int, done: int) -> Iterator[PlannedWrite]:
        """Yield a chain's writes after the first ``done``, without end."""
        balances = [INITIAL_BALANCE] * self.accounts
        for txn in range(1, done // STEPS + 1):
            earlier = self.transfer(chain, txn)
            balances[earlier.source] -= earlier.amount
            balances[earlier.target] += earlier.amount
        txn = done // STEPS
        while True:
            txn += 1
            transfer = self.transfer(chain, txn)
            source, target, amount = transfer.source, transfer.target, transfer.amount
            balances[source] -= amount
            balances[target] += amount
            after = (balances[source], balances[target])
            for kind in Kind:
                counter = (txn - 1) * STEPS + kind
                if counter > done:
                    yield self._planned(counter, txn, kind, chain, transfer, after)

    def _planned(
        self, counter: int, txn: int, kind: Kind, chain: int, transfer: Transfer, after: tuple[int, int]
    ) -> PlannedWrite:
        if kind is Kind.DEBIT:
            place = self.account_place(chain, transfer.source)
        elif kind is Kind.CREDIT:
            place = self.account_place(chain, transfer.target)
        else:
            place = self.log_place(chain, txn, kind)
        return PlannedWrite(
            counter,
            txn,
            kind,
            *place,
            transfer.source,
            transfer.target,
            transfer.amount,
            0 if kind is Kind.CREDIT else after[0],
            0 if kind is Kind.DEBIT else after[1],
            transfer.needs if kind is Kind.INTENT else None,
        )


def plan_format(
    sizes: list[int],
    *,
    ledgers: int,
    chains: int,
    accounts: int,
    slots: int,
    block_size: int,
    run: int,
    seed: int,
    made_ns: int,
) -> list[Superblock]:
    """Return the superblocks of a new set of volumes of these sizes (bytes), in their order.

    Raises BadVolumes with what is wrong and what would be right.
    """
    if len(sizes) < 2:
        raise BadVolumes("the bank needs at least two volumes: accounts on some, the log on the last")
    if not 1 <= ledgers < len(sizes):
        raise BadVolumes(f"--ledgers {ledgers}: with {len(sizes)} volumes it can be 1 to {len(sizes) - 1}")
    if not 1 <= chains <= CHAINS_MAX:
        raise BadVolumes(f"{chains} chains: there can be 1 to {CHAINS_MAX} over all hosts")
    if not 3 <= accounts <= ACCOUNTS_MAX or not 2 <= slots <= SLOTS_MAX:
        raise BadVolumes(f"a chain needs 3 to {ACCOUNTS_MAX} accounts and 2 to {SLOTS_MAX} log slots")
    if block_size not in BLOCK_SIZES:
        raise BadVolumes(f"--block-size {block_size}: it can be one of {', '.join(map(str, BLOCK_SIZES))}")
    superblocks = [
        Superblock(run, seed, made_ns, volume, len(sizes), ledgers, chains, accounts, slots, block_size)
        for volume in range(len(sizes))
    ]
    for superblock, size in zip(superblocks, sizes, strict=True):
        needed = BankLayout(superblock).used_blocks(superblock.volume) * block_size
        if size < needed:
            option = "--slots" if superblock.volume >= len(sizes) - ledgers else "--accounts"
            raise BadVolumes(
                f"volume {superblock.volume + 1} has {size} bytes and needs {needed}: make it larger, or lower {option}"
            )
    return superblocks


def _mix(seed: int, chain: int, txn: int) -> int:
    """Return 64 bits that look random and are the same for ever (SplitMix64 of the three numbers)."""
    value = (seed + chain * 0xD1342543DE82EF95 + txn * 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
