"""Rules about hosts as people write them."""

from __future__ import annotations

import pytest

from controllerd.management.schemas import AllowRule
from mgmtctl.errors import CliError
from mgmtctl.host_rules import parse_rules, rule_text

TEXTS = [
    "network=10.0.0.0/8",
    "network=2001:db8::/32,read-only",
    "certificate=db1.example",
    "network=unix,certificate=db1,read-only",
    "read-only",
]


@pytest.mark.parametrize("text", TEXTS)
def test_rule_is_written_as_it_is_read(text: str) -> None:
    (rule,) = parse_rules([text], everyone=False, nobody=False) or []
    assert rule_text(rule) == text


def test_parts_may_come_in_any_order_and_with_spaces() -> None:
    (rule,) = parse_rules(["read-only, certificate=db 1 , network=unix"], everyone=False, nobody=False) or []
    assert rule == AllowRule(network="unix", certificate="db 1", read_only=True)


def test_everyone_and_nobody_are_no_lists_of_rules() -> None:
    assert parse_rules(None, everyone=True, nobody=False) is None
    assert parse_rules([], everyone=False, nobody=True) == []
    assert rule_text(AllowRule()) == "every host"


@pytest.mark.parametrize(
    "text", ["", "10.0.0.0/8", "network", "network=", "network=a,network=b", "read-only=yes", "x=1"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(CliError):
        parse_rules([text], everyone=False, nobody=False)


@pytest.mark.parametrize(("texts", "everyone", "nobody"), [(None, False, False), (["read-only"], True, False)])
def test_exactly_one_thing_is_said(texts: list[str] | None, everyone: bool, nobody: bool) -> None:
    with pytest.raises(CliError):
        parse_rules(texts, everyone=everyone, nobody=nobody)
