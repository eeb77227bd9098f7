"""mgmtctl and three real controllers: the cascade C -> A -> B of the example configurations, up to the takeover."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.site import Site
from mgmtctl.errors import ExitCode
from mgmtctl.main import main
from tests.integration.harness import wait_for

_PATTERN = 0x5A


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("MGMTCTL_URL", "MGMTCTL_TOKEN", "MGMTCTL_CONTROLLER"):
        monkeypatch.delenv(name, raising=False)
    it = Site(tmp_path)
    monkeypatch.setenv("MGMTCTL_CONFIG", str(it.client_file))
    try:
        for controller in it.controllers:
            controller.start()
        yield it
    finally:
        it.stop()


class Operator:
    """Somebody at the command line."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def order(self, words: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        code = main(words.split())
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def good(self, words: str) -> str:
        code, out, err = self.order(words)
        assert code == 0, (words, err)
        return out

    def ask(self, words: str) -> Any:
        return json.loads(self.good(f"{words} --json"))

    def pairs(self, *controllers: str) -> dict[tuple[str, str, str], dict[str, Any]]:
        """What `status` says by (controller, group, role)."""
        asked = " ".join(f"-c {name}" for name in controllers)
        return {
            (one["name"], entry["group"], entry["role"]): entry
            for one in self.ask(f"status {asked}")["controllers"]
            for entry in one["groups"]
        }


def write(uri: str) -> None:
    command = ["qemu-io", "-f", "raw", uri, "-c", f"write -P {_PATTERN} 0 1M", "-c", "flush"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def has_pattern(uri: str) -> bool:
    command = ["qemu-io", "-r", "-f", "raw", uri, "-c", f"read -P {_PATTERN} 0 1M"]
    return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0


def test_cascade_from_nothing_to_takeover(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    operator = Operator(capsys)
    for name in "CAB":
        operator.good(f"disk create {name}:d1 --size 64MiB")
        operator.good(f"pool create {name}:p --disk d1")
    for group in ("g1", "g2"):
        operator.good(f"group create C:{group}")
        operator.good(f"volume create C:{group}v --size 16MiB --pool p --group {group}")
        first = f"pair create C:{group} A:{group} --mode sync --create-secondary --pool p"
        second = f"pair create A:{group} B:{group} --create-secondary --pool p"
        assert operator.good(first) == f"pair C:{group} -> A:{group} created: sync, 1 volume\n"
        assert operator.good(second) == f"pair A:{group} -> B:{group} created: async, 1 volume\n"
    again = "pair create A:g2 B:g2 --create-secondary --pool p"
    assert operator.good(again).endswith("1 volume\n"), "the same order again"
    code, _, err = operator.order(f"{again} --mode sync")
    assert code == ExitCode.CONFLICT
    assert "exists with other parameters" in err

    wait_for("all links", lambda: all(pair["connected"] for pair in operator.pairs().values()))
    assert {key: pair["state"] for key, pair in operator.pairs().items()} == {
        (name, group, role): "PAIR"
        for group in ("g1", "g2")
        for name, role in (("C", "primary"), ("A", "secondary"), ("A", "primary"), ("B", "secondary"))
    }
    assert not operator.ask("volume show B:g1v")["writable"]
    assert operator.order("volume delete B:g1v --yes")[0] == ExitCode.CONFLICT
    assert operator.order("group delete A:g1 --yes")[0] == ExitCode.CONFLICT
    code, _, err = operator.order("pair delete A:g1 --yes")
    assert code == ExitCode.CONFLICT
    assert "is in several pairs" in err

    write(site.c.uri("g1v"))
    written = operator.ask("group show C:g1")["written"]["seq"]

    def arrived_and_applied() -> bool:
        last = operator.pairs("B")["B", "g1", "secondary"]
        return bool(last["applied"]["seq"] == last["written"]["seq"] and last["missing_writes"] == 0)

    wait_for("B to have applied the write", lambda: has_pattern(site.b.uri("g1v")) and arrived_and_applied())
    # In host mode the time stands still while no host gives one, so the idle pair has nothing left to send.
    wait_for("no lag when idle", lambda: operator.pairs("B")["B", "g1", "secondary"]["lag_s"] == 0)
    assert operator.pairs("C")["C", "g1", "primary"]["arrived"]["seq"] >= written
    assert 'remotecopy_pair_state{group="g1",peer="A",role="secondary",state="PAIR"} 1.0' in operator.good(
        "metrics -c B"
    )
    preview = operator.ask("takeover B --preview")
    assert preview["preview"]
    assert any("A is connected and still takes writes" in warning for warning in preview["warnings"])

    site.c.kill()
    site.a.kill()
    code, out, _ = operator.order("status")
    assert code == ExitCode.UNREACHABLE
    assert out.count("unreachable") == 2
    assert "B:g1" in out

    wait_for("the cut link to be noticed", lambda: not operator.pairs("B")["B", "g1", "secondary"]["connected"])
    lag = operator.pairs("B")["B", "g1", "secondary"]["lag_s"]
    wait_for("the lag to grow", lambda: operator.pairs("B")["B", "g1", "secondary"]["lag_s"] > lag)
    assert "no connection to A" in operator.pairs("B")["B", "g1", "secondary"]["holder_why"]
    shown = operator.good("takeover B --preview")
    assert "0 s known; the primary may have acknowledged up to" in shown
    assert "none known" in shown
    report = operator.ask("takeover B --yes")
    assert {group["group"]: group["missing_writes"] for group in report["groups"]} == {"g1": 0, "g2": 0}
    assert report["rpo_known_s"] == 0
    assert report["rpo_s"] > lag
    assert operator.ask("volume show B:g1v")["writable"]
    assert has_pattern(site.b.uri("g1v"))
    write(site.b.uri("g2v"))
    assert operator.pairs("B")["B", "g1", "secondary"]["state"] == "SSWS"
    assert operator.ask("takeover B --yes")["cut_time"] == report["cut_time"], "given twice, done once"
    operator.good("pair delete B:g1 --yes")
    operator.good("volume delete B:g1v --yes")
    operator.good("group delete B:g1 --yes")


def test_pair_create_that_fails_leaves_nothing_behind(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    operator = Operator(capsys)
    for name in "AB":
        operator.good(f"disk create {name}:d1 --size 64MiB")
        operator.good(f"pool create {name}:p --disk d1")
    operator.good("group create A:g1")
    operator.good("volume create A:v1 --size 16MiB --pool p --group g1")
    write(site.a.uri("v1"))
    code, _, err = operator.order("pair create A:g1 B:g1 --create-secondary --pool p")
    assert code in (ExitCode.CONFLICT, ExitCode.REFUSED)
    assert "v1" in err
    assert err.count("\n") == 1, err
    assert operator.ask("pair list -c B") == operator.ask("volume list -c B") == operator.ask("group list -c B") == []


def test_second_daemon_of_one_configuration_is_refused(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.a.pid
    command = [sys.executable, "-m", "controllerd", "--config", str(tmp_path / "a.toml")]
    second = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert "start-failed" in second.stderr
    assert "Traceback" not in second.stderr
    assert Operator(capsys).ask("system show -c A")["name"] == "A"
