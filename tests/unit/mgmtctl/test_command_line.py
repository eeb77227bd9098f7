"""The command line without a controller: help, usage errors, completion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from controllerd.management.schemas import VERSION
from mgmtctl.errors import MEANINGS, ExitCode
from mgmtctl.main import app, main


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MGMTCTL_URL", "MGMTCTL_TOKEN", "MGMTCTL_CONTROLLER", "MGMTCTL_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def orders(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every order there is, as words."""
    command = command or get_command(app)
    children = getattr(command, "commands", None)
    if not children:
        yield path
        return
    for name, child in children.items():
        yield from orders(child, (*path, name))


@pytest.mark.parametrize("words", list(orders()), ids=" ".join)
def test_every_order_has_help_with_an_example(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Example: mgmtctl {' '.join(words)}" in result.output


def test_orders_are_all_there() -> None:
    assert {" ".join(words) for words in orders()} >= {
        "system show", "system config", "disk create", "disk list", "pool create", "pool list", "volume create",
        "volume list", "volume show", "volume resize", "volume delete", "volume allow", "volume connections",
        "volume disconnect", "group create", "group list", "group show",
        "group delete", "pair create", "pair list", "pair show", "pair delete", "status", "takeover", "metrics",
    }  # fmt: skip


def test_help_documents_every_exit_code() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for code in ExitCode:
        assert f"{int(code)}  {MEANINGS[code]}" in text
    assert "[controllers.A]" in text


USAGE: list[list[str]] = [
    ["nonsense"],
    ["volume", "nonsense"],
    ["volume", "create"],
    ["volume", "create", "v", "--size", "1XB", "--pool", "p", "--group", "g"],
    ["volume", "create", "v", "--size", "1MiB", "--pool", "../p", "--group", "g"],
    ["volume", "create", "a/b", "--size", "1MiB", "--pool", "p", "--group", "g"],
    ["volume", "create", "A:v", "-c", "B", "--size", "1MiB", "--pool", "p", "--group", "g"],
    ["volume", "create", "v", "--size", "1", "--pool", "p", "--group", "g"],
    ["volume", "list", "--jsn"],
    ["volume", "list"],
    ["volume", "allow", "v"],
    ["volume", "allow", "v", "--everyone", "--nobody"],
    ["volume", "allow", "v", "--to", "10.0.0.0/8"],
    ["volume", "allow", "v", "--to", "network=10.0.0.0/8,network=unix"],
    ["volume", "allow", "v", "--to", "certificate="],
    ["volume", "disconnect", "v", "first"],
    ["status", "--interval", "0"],
    ["--config", "/none", "volume", "list"],
    ["--url", "ftp://x", "volume", "list"],
    ["--timeout", "x", "volume", "list"],
    ["pair", "create", "g1", "B:g1"],
    ["pair", "create", "A:g1", "B:g1", "--pool", "p"],
    ["pair", "create", "A:g1", "B:g1", "--map", "x"],
    ["pair", "create", "A:g1", "B:g1", "--mode", "other"],
    ["group", "create", "g", "--durability", "other"],
    ["takeover"],
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_wrong_usage_is_one_line_and_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mgmtctl: ")
    assert captured.err.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mgmtctl {VERSION}\n"


def complete(words: str, client_file: Path) -> list[str]:
    environment = {
        "_MGMTCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = CliRunner().invoke(app, [], prog_name="mgmtctl", env=environment | {"MGMTCTL_CONFIG": str(client_file)})
    return result.output.split()


def test_controller_names_are_completed_from_the_client_file(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('[controllers.alpha]\nurl = "http://a"\n[controllers.beta]\nurl = "http://b"\n')
    assert complete("mgmtctl volume list -c ", path) == ["alpha", "beta"]
    assert complete("mgmtctl takeover b", path) == ["beta"]
    assert complete("mgmtctl volume show al", path) == ["alpha:"]
    path.write_text("broken")
    assert complete("mgmtctl takeover b", path) == []
