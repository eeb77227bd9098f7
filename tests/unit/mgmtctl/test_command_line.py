"""The command line without a controller: help, usage errors, completion."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from controllerd.management.schemas import VERSION
from mgmtctl.errors import ExitCode
from mgmtctl.main import app, main


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MGMTCTL_URL", "MGMTCTL_TOKEN", "MGMTCTL_CONTROLLER", "MGMTCTL_CONFIG"):
        monkeypatch.delenv(name, raising=False)


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
