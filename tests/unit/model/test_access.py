"""Which hosts may open a volume."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.access import RULES_MAX, Client, Grant, address_of, documents_of, fold, grant, rules
from controllerd.model.errors import BadOrder

NONE, READ, WRITE = Grant.NONE, Grant.READ_ONLY, Grant.READ_WRITE


def client(address: str | None, *names: str) -> Client:
    return Client(None if address is None else address_of(address), frozenset(map(fold, names)))


def test_volume_without_rules_is_for_everyone_and_with_an_empty_list_for_nobody() -> None:
    for one in (client("10.0.0.1"), client(None), client("::1", "db1")):
        assert grant(rules(None), one) is WRITE
        assert grant(rules([]), one) is NONE


@pytest.mark.parametrize(
    ("rule", "one", "expected"),
    [
        ({"network": "10.0.0.0/8"}, client("10.255.0.1"), WRITE),
        ({"network": "10.0.0.0/8"}, client("11.0.0.1"), NONE),
        ({"network": "10.0.0.0/8"}, client(None), NONE),
        ({"network": "10.0.0.7"}, client("10.0.0.7"), WRITE),
        ({"network": "10.0.0.7"}, client("10.0.0.8"), NONE),
        ({"network": "10.0.0.0/8"}, client("::ffff:10.1.2.3"), WRITE),
        ({"network": "0.0.0.0/0"}, client("2001:db8::1"), NONE),
        ({"network": "fe80::/10"}, client("fe80::1%eth0"), WRITE),
        ({"network": "unix"}, client(None), WRITE),
        ({"network": "unix"}, client("127.0.0.1"), NONE),
        ({"certificate": "DB1.Example"}, client("10.0.0.1", "db1.example", "other"), WRITE),
        ({"certificate": "db1.example"}, client("10.0.0.1", "db2.example"), NONE),
        ({"certificate": "db1.example"}, client("10.0.0.1"), NONE),
        ({"network": "10.0.0.0/8", "certificate": "db1"}, client("10.0.0.1", "db1"), WRITE),
        ({"network": "10.0.0.0/8", "certificate": "db1"}, client("10.0.0.1", "db2"), NONE),
        ({"network": "10.0.0.0/8", "certificate": "db1"}, client("11.0.0.1", "db1"), NONE),
        ({"read_only": True}, client(None), READ),
        ({"network": "10.0.0.0/8", "read_only": True}, client("10.0.0.1"), READ),
    ],
)
def test_rule_fits(rule: dict[str, Any], one: Client, expected: Grant) -> None:
    assert grant(rules([rule]), one) is expected


RULES: list[dict[str, Any]] = [
    {"network": "10.0.0.0/8", "read_only": True},
    {"network": "10.0.0.0/8", "certificate": "db1"},
    {"network": "unix"},
    {"certificate": "db2", "read_only": True},
]


@given(order=st.permutations(RULES))
def test_order_of_rules_means_nothing(order: list[dict[str, Any]]) -> None:
    assert grant(rules(order), client("10.0.0.1", "db1")) is WRITE
    assert grant(rules(order), client("10.0.0.1", "db2")) is READ
    assert grant(rules(order), client("11.0.0.1", "db1")) is NONE


def test_documents_are_taken_back() -> None:
    kept = documents_of(rules(RULES))
    assert rules(kept) == rules(RULES)
    assert documents_of(rules(None)) is None
    assert documents_of(rules([])) == []


@pytest.mark.parametrize(
    "rule", [{"network": "10.0.0.1/8"}, {"network": "everyone"}, {"network": ""}, {"certificate": " "}]
)
def test_nonsense_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(BadOrder):
        rules([rule])


def test_number_of_rules_is_bounded() -> None:
    with pytest.raises(BadOrder):
        rules([{"certificate": f"host{number}"} for number in range(RULES_MAX + 1)])
