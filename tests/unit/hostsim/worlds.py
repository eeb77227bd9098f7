"""A bank in memory: the histories that checkers are tested on.

Owns: hosts that write as the real ones do, without servers: every write carries what was acknowledged when it was
issued, and acknowledgements come in any order the generator likes. Never: asks a checker.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hostsim.bank_layout import BankLayout, PlannedWrite, plan_format
from hostsim.stamp import Stamp, encode, encode_superblock

BLOCK_SIZE = 512
RUN = 0xABCDEF0123456789


def small_layout(
    *, volumes: int = 4, ledgers: int = 2, chains: int = 4, accounts: int = 5, slots: int = 3
) -> BankLayout:
    """Return a bank that is small enough for every block to be overwritten often."""
    superblocks = plan_format(
        [1 << 20] * volumes,
        ledgers=ledgers,
        chains=chains,
        accounts=accounts,
        slots=slots,
        block_size=BLOCK_SIZE,
        run=RUN,
        seed=7,
        made_ns=1,
    )
    return BankLayout(superblocks[0])


@dataclass(frozen=True)
class Write:
    """One write as it was issued."""

    chain: int
    planned: PlannedWrite
    seen: tuple[int, ...]
    data: bytes


def stamp_of(layout: BankLayout, chain: int, planned: PlannedWrite, seen: tuple[int, ...], when: int) -> Stamp:
    """Return the stamp a host would make."""
    return Stamp(
        run=layout.superblock.run,
        kind=planned.kind,
        host=1 + chain % 3,
        chain=chain,
        chains=layout.chains,
        volume=planned.volume,
        block=planned.block,
        counter=planned.counter,
        txn=planned.txn,
        issued_ns=when,
        write_time=when if chain % 3 == 0 else 0,
        seen=seen,
        source=planned.source,
        target=planned.target,
        amount=planned.amount,
        source_balance=planned.source_balance,
        target_balance=planned.target_balance,
    )


def history(layout: BankLayout, writes: int, seed: int) -> list[Write]:
    """Return ``writes`` writes in the order in which they were issued; between two of them some are acknowledged."""
    chance = random.Random(seed)
    plans = [layout.writes(chain, 0) for chain in range(layout.chains)]
    coming = [next(plan) for plan in plans]
    acknowledged = [0] * layout.chains
    in_flight: dict[int, int] = {}
    made: list[Write] = []
    while len(made) < writes:
        chain = chance.randrange(layout.chains)
        if chain in in_flight:
            acknowledged[chain] = in_flight.pop(chain)
            continue
        planned = coming[chain]
        if planned.needs is not None and acknowledged[planned.needs[0]] < planned.needs[1]:
            continue
        seen = tuple(acknowledged)
        data = encode(stamp_of(layout, chain, planned, seen, 1_000 + len(made)), layout.block_size)
        made.append(Write(chain, planned, seen, data))
        in_flight[chain] = planned.counter
        coming[chain] = next(plans[chain])
    return made


def closed(writes: Sequence[Write], reached: Sequence[int]) -> bool:
    """Say by brute force whether the writes up to ``reached`` of each chain contain all that they were issued after."""
    return all(
        seen <= there
        for write in writes
        if write.planned.counter <= reached[write.chain]
        for seen, there in zip(write.seen, reached, strict=True)
    )


def image(layout: BankLayout, writes: Iterable[Write]) -> list[bytearray]:
    """Return the volumes' contents after these writes."""
    superblock = layout.superblock
    volumes = []
    for volume in range(layout.volumes):
        content = bytearray(layout.used_blocks(volume) * layout.block_size)
        fields = {name: getattr(superblock, name) for name in superblock.__slots__} | {"volume": volume}
        content[: layout.block_size] = encode_superblock(type(superblock)(**fields))
        volumes.append(content)
    for write in writes:
        at = write.planned.block * layout.block_size
        volumes[write.planned.volume][at : at + layout.block_size] = write.data
    return volumes
