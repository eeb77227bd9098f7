"""Rules about hosts as people write them: ``network=10.0.0.0/8,certificate=db1,read-only``.

Owns: their text form, both ways, and the options that take it. Never: judges a network or a name (the controller does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from controllerd.management.schemas import AllowRule
from mgmtctl.errors import CliError, usage_error
from mgmtctl.requests import build

_FORM = "network=CIDR|unix,certificate=NAME,read-only"

RulesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        metavar=_FORM,
        help="Hosts that may open it: in this network and with this name in their certificate. Any part can be left "
        "out. May be repeated.",
    ),
]
EveryoneOption = Annotated[bool, typer.Option("--everyone", help="Every host may open it.")]
NobodyOption = Annotated[bool, typer.Option("--nobody", help="No host may open it.")]


def parse_rules(texts: Sequence[str] | None, *, everyone: bool, nobody: bool) -> list[AllowRule] | None:
    """What the three options say together; raises CliError (usage) unless exactly one of them is there."""
    if bool(texts) + everyone + nobody != 1:
        raise usage_error("say one of: --to RULE (may be repeated), --everyone, --nobody")
    return None if everyone else [_rule(text) for text in texts or ()]


def _rule(text: str) -> AllowRule:
    fields: dict[str, object] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if key in ("network", "certificate") and value and key not in fields:
            fields[key] = value.strip()
        elif key == "read-only" and not equals:
            fields["read_only"] = True
        else:
            raise _wrong(text)
    return build(AllowRule, **fields)


def _wrong(text: str) -> CliError:
    return usage_error(f'--to "{text}": write {_FORM}, or some of these parts')


def rule_text(rule: AllowRule) -> str:
    """A rule as `parse_rules` takes it."""
    parts = [f"network={rule.network}"] if rule.network is not None else []
    parts += [f"certificate={rule.certificate}"] if rule.certificate is not None else []
    parts += ["read-only"] if rule.read_only else []
    return ",".join(parts) or "every host"
