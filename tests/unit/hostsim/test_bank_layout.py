"""The bank's plan: places, transfers, and that chains never wait for each other in a circle."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostsim.bank_layout import CLEARING, INITIAL_BALANCE, STEPS, committed, plan_format, step_of
from hostsim.errors import BadVolumes
from hostsim.stamp import CHAINS_MAX, Kind
from tests.unit.hostsim.worlds import history, small_layout


def test_counters_name_transfer_and_step() -> None:
    assert [step_of(counter) for counter in (1, 2, 3, 4, 5)] == [
        (1, Kind.INTENT),
        (1, Kind.DEBIT),
        (1, Kind.CREDIT),
        (1, Kind.COMMIT),
        (2, Kind.INTENT),
    ]
    assert [committed(counter) for counter in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


@given(volumes=st.integers(2, 6), ledgers=st.integers(1, 3), chains=st.integers(1, 16), accounts=st.integers(3, 20))
def test_every_block_belongs_to_one_chain_and_lies_on_the_used_part(
    volumes: int, ledgers: int, chains: int, accounts: int
) -> None:
    layout = small_layout(volumes=volumes, ledgers=min(ledgers, volumes - 1), chains=chains, accounts=accounts)
    places = [layout.account_place(chain, account) for chain in range(chains) for account in range(accounts)]
    for chain in range(chains):
        for txn in range(1, layout.slots + 1):
            places += [layout.log_place(chain, txn, Kind.INTENT), layout.log_place(chain, txn, Kind.COMMIT)]
    assert len(set(places)) == len(places)
    assert all(1 <= block < layout.used_blocks(volume) for volume, block in places)


@given(chains=st.integers(1, 16), accounts=st.integers(3, 20), volumes=st.integers(2, 5))
def test_transfers_are_between_two_accounts_and_mostly_two_volumes(chains: int, accounts: int, volumes: int) -> None:
    layout = small_layout(volumes=volumes, ledgers=1, chains=chains, accounts=accounts)
    for txn in range(1, 100):
        for chain in range(chains):
            transfer = layout.transfer(chain, txn)
            assert transfer.source != transfer.target
            assert min(transfer.source, transfer.target) >= 0
            assert max(transfer.source, transfer.target) < accounts
            assert transfer.amount > 0


def test_what_is_taken_in_was_sent_once() -> None:
    layout = small_layout(chains=5)
    sent: dict[tuple[int, int], int] = {}
    taken: list[tuple[int, int]] = []
    for txn in range(1, 400):
        for chain in range(layout.chains):
            transfer = layout.transfer(chain, txn)
            if transfer.target == CLEARING:
                sent[chain, txn * STEPS] = transfer.amount
            if transfer.needs is not None:
                assert transfer.source == CLEARING
                assert transfer.needs[0] != chain
                assert sent[transfer.needs] == transfer.amount
                taken.append(transfer.needs)
    assert len(taken) == len(set(taken))


@given(chains=st.integers(1, CHAINS_MAX), seed=st.integers(0, 1000))
def test_chains_never_wait_in_a_circle(chains: int, seed: int) -> None:
    """A history of any length can be made: the generator would not end otherwise."""
    assert len(history(small_layout(chains=chains), 1500, seed)) == 1500


@given(done=st.integers(0, 200), chain=st.integers(0, 3))
def test_plan_goes_on_in_the_middle(done: int, chain: int) -> None:
    layout = small_layout()
    assert list(islice(layout.writes(chain, done), 20)) == list(islice(layout.writes(chain, 0), done, done + 20))


def test_balances_follow_the_transfers() -> None:
    layout = small_layout()
    balances = [INITIAL_BALANCE] * layout.accounts
    for write in islice(layout.writes(2, 0), 400):
        if write.kind is Kind.DEBIT:
            balances[write.source] -= write.amount
            assert write.source_balance == balances[write.source]
        if write.kind is Kind.CREDIT:
            balances[write.target] += write.amount
            assert write.target_balance == balances[write.target]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sizes": [1 << 20]}, "at least two volumes"),
        ({"ledgers": 3}, "it can be 1 to 2"),
        ({"chains": 17}, "1 to 16"),
        ({"accounts": 2}, "3 to"),
        ({"slots": 1}, "log slots"),
        ({"block_size": 1000}, "one of 512"),
        ({"sizes": [1 << 20, 4096, 1 << 20]}, "volume 2 has 4096 bytes and needs .* --accounts"),
        ({"sizes": [1 << 20, 1 << 20, 4096]}, "volume 3 has 4096 bytes and needs .* --slots"),
    ],
)
def test_format_that_cannot_be_is_refused(change: dict[str, object], says: str) -> None:
    wanted: dict[str, object] = {
        "sizes": [1 << 20] * 3,
        "ledgers": 1,
        "chains": 4,
        "accounts": 16,
        "slots": 8,
        "block_size": 512,
        "run": 1,
        "seed": 1,
        "made_ns": 1,
    }
    wanted |= change
    with pytest.raises(BadVolumes, match=says):
        plan_format(**wanted)  # type: ignore[arg-type]
