"""mgmtctl against real HTTP ports: every order, its table, its JSON and its exit code."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controllerd.model.errors import Busy, Conflict, Corrupt, NoSpace, Unreachable
from mgmtctl import pair_create
from mgmtctl.errors import ExitCode
from mgmtctl.main import main
from tests.unit.management.api_thread import Served, served
from tests.unit.management.fake_controller import TOKEN

MIB = 1 << 20
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in ("MGMTCTL_URL", "MGMTCTL_TOKEN", "MGMTCTL_CONTROLLER"):
        monkeypatch.delenv(name, raising=False)
    a = {"name": "A", "serial": 1, "peers": [("B", "127.0.0.1:2", 2)]}
    b = {"name": "B", "serial": 2, "peers": [("A", "127.0.0.1:1", 1)]}
    with served(tmp_path, a, b) as both:
        lines = ['default = "A"']
        for name, url in both.urls.items():
            lines.append(f'[controllers.{name}]\nurl = "{url}"\ntoken = "{TOKEN}"')
        client_file = tmp_path / "m.toml"
        client_file.write_text("\n".join(lines))
        monkeypatch.setenv("MGMTCTL_CONFIG", str(client_file))
        yield both


@pytest.fixture
def run(sites: Served, capsys: pytest.CaptureFixture[str]) -> Run:
    """Give an order; returns exit code, standard output and standard error."""

    def order(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return order


def good(run: Run, *words: str) -> str:
    code, out, err = run(*words)
    assert (code, err) == (0, ""), (words, err)
    return out


def answer(run: Run, *words: str) -> Any:
    return json.loads(good(run, *words, "--json"))


def capacity(run: Run, *controllers: str) -> None:
    for name in controllers:
        good(run, "disk", "create", f"{name}:d1", "--size", "32MiB")
        good(run, "pool", "create", f"{name}:p", "--disk", "d1")


def primary(run: Run) -> None:
    capacity(run, "A", "B")
    good(run, "group", "create", "A:g1", "--durability", "stable")
    for name in ("v1", "v2"):
        good(run, "volume", "create", f"A:{name}", "--size", "8MiB", "--pool", "p", "--group", "g1")


def pair(run: Run, *more: str) -> tuple[int, str, str]:
    return run("pair", "create", "A:g1", "B:g1", "--create-secondary", "--pool", "p", *more)


def test_disk_pool_group_volume(run: Run) -> None:
    assert good(run, "disk", "create", "A:d1", "--size", "32MiB").startswith("disk d1 created: 32 MiB at ")
    assert good(run, "pool", "create", "A:p", "--disk", "d1") == "pool p created: 32 MiB on d1\n"
    good(run, "disk", "create", "A:d2", "--size", "16MiB")
    assert good(run, "pool", "add-disk", "A:p", "--disk", "d2") == "pool p has 48 MiB on d1, d2\n"
    assert run("pool", "add-disk", "A:p", "--disk", "d2")[0] == ExitCode.CONFLICT
    assert run("pool", "add-disk", "A:other", "--disk", "d2")[0] == ExitCode.NOT_FOUND
    assert run("pool", "add-disk", "A:p", "--disk", "d3")[0] == ExitCode.NOT_FOUND
    assert "group g1 created: durability cache" in good(run, "group", "create", "A:g1")
    words = ("volume", "create", "v1", "--size", "8MiB", "--pool", "p", "--group", "g1", "--description", "[b]data[/b]")
    assert good(run, *words) == "volume v1 created: 8 MiB in group g1\n"
    for order, row in [
        (("disk", "list"), ("d1", "32 MiB")),
        (("pool", "list", "-c", "A"), ("p", "8 MiB")),
        (("group", "list"), ("g1", "primary")),
        (("volume", "list"), ("v1", "write", "[b]data[/b]")),
        (("volume", "show", "v1"), ("8 MiB (8388608 bytes)",)),
        (("group", "show", "A:g1"), ("number 0",)),
        (("system", "show"), ("A, serial 1", "B at 127.0.0.1:2 (connected)")),
        (("system", "config"), ("peer 1.name", "management.token")),
        (("metrics",), ("remotecopy_controller_info",)),
    ]:
        out = good(run, *order)
        assert all(part in out for part in row), (order, out)
    assert answer(run, "volume", "resize", "v1", "--size", "9MiB")["size"] == 9 * MIB
    assert good(run, "volume", "delete", "v1", "--yes") == "volume v1 deleted\n"
    assert good(run, "volume", "list") == "none\n"
    assert answer(run, "group", "delete", "g1", "-y")["done"] is True
    assert answer(run, "system", "checkpoint")["done"] is True


def test_answers_for_scripts_are_the_schemas(run: Run) -> None:
    primary(run)
    assert [volume["name"] for volume in answer(run, "volume", "list")] == ["v1", "v2"]
    assert answer(run, "volume", "show", "A:v1")["size"] == 8 * MIB
    assert answer(run, "group", "show", "g1")["written"] == {"seq": 0, "time": 0}
    assert answer(run, "system", "show", "-c", "B")["serial"] == 2
    assert answer(run, "disk", "list")[0]["pool"] == "p"


def test_thin_volume_warns_on_standard_error(run: Run) -> None:
    primary(run)
    code, out, err = run("volume", "create", "big", "--size", "1GiB", "--pool", "p", "--group", "g1")
    assert code == 0
    assert out.startswith("volume big created")
    assert err.startswith("warning: pool p")


def test_pair_is_created_on_both_sides_and_twice_is_once(run: Run, sites: Served) -> None:
    primary(run)
    code, out, err = pair(run, "--mode", "sync", "--order", "time", "--sync-timeout", "2")
    assert (code, out, err) == (0, "pair A:g1 -> B:g1 created: sync, 2 volumes\n", "")
    second, first = sites.controllers["B"].pairs.orders[0], sites.controllers["A"].pairs.orders[0]
    assert (second.role, second.peer, second.order, second.keep_journal) == ("secondary", "A", "time", False)
    assert (first.role, first.peer, first.overflow, first.sync_timeout_s) == ("primary", "B", None, 2)
    keys = {volume.name: key for key, volume in sites.controllers["A"].storage.groups["g1"].volumes.items()}
    assert {volume.primary: volume.key for volume in second.volumes} == keys
    assert answer(run, "group", "show", "B:g1")["durability"] == "stable", "made like the primary's"
    assert answer(run, "volume", "show", "B:v1")["size"] == 8 * MIB
    assert pair(run, "--mode", "sync", "--order", "time", "--sync-timeout", "2")[0] == 0
    assert len(sites.controllers["A"].pairs.known) == len(sites.controllers["B"].pairs.known) == 1
    assert "A:g1" in good(run, "pair", "list", "-c", "B")
    assert "v1 -> v1 (8 MiB)" in good(run, "pair", "show", "A:g1")
    assert good(run, "pair", "suspend", "A:g1") == "pair g1 -> B:g1 is PSUS\n"
    assert (
        good(run, "pair", "delete", "A:g1", "--peer", "B", "--role", "primary", "--yes") == "pair of group g1 deleted\n"
    )
    assert run("pair", "show", "A:g1")[0] == ExitCode.NOT_FOUND
    assert pair(run, "--mode", "sync", "--order", "time", "--sync-timeout", "2")[0] == 0
    assert good(run, "pair", "delete", "A:g1", "B:g1", "-y") == 2 * "pair of group g1 deleted\n"
    assert sites.controllers["A"].pairs.known == sites.controllers["B"].pairs.known == {}


def test_pair_that_is_there_is_not_made_again_in_another_way(run: Run, sites: Served) -> None:
    primary(run)
    assert pair(run)[0] == 0
    good(run, "disk", "create", "B:d2", "--size", "32MiB")
    good(run, "pool", "create", "B:q", "--disk", "d2")
    code, out, err = run("pair", "create", "A:g1", "B:g1", "--create-secondary", "--pool", "q")
    assert (code, out) == (ExitCode.CONFLICT, "")
    assert "volume B:v1 is there already, in pool p" in err
    good(run, "pair", "suspend", "A:g1")
    code, out, err = pair(run)
    assert (code, out) == (ExitCode.CONFLICT, "")
    assert "A: the pair of group g1 is there already and is PSUS" in err
    assert len(sites.controllers["B"].pairs.known) == 1


def test_pair_create_undoes_what_it_made_when_the_primary_refuses(run: Run, sites: Served) -> None:
    primary(run)
    sites.controllers["A"].pairs.fail = Conflict("volume v1 holds data", volume="v1")
    code, out, err = pair(run)
    assert (code, out, err) == (ExitCode.CONFLICT, "", "mgmtctl: A: volume v1 holds data\n")
    assert sites.controllers["B"].pairs.known == {}
    assert good(run, "volume", "list", "-c", "B") == good(run, "group", "list", "-c", "B") == "none\n"


def test_pair_create_leaves_what_was_there_when_it_fails(run: Run, sites: Served) -> None:
    primary(run)
    good(run, "group", "create", "B:g1")
    good(run, "volume", "create", "B:v1", "--size", "8MiB", "--pool", "p", "--group", "g1")
    sites.controllers["B"].pairs.fail = Unreachable("peer A does not answer")
    assert pair(run)[0] == ExitCode.UNREACHABLE
    assert [volume["name"] for volume in answer(run, "volume", "list", "-c", "B")] == ["v1"]


def test_pair_create_says_when_undoing_fails(run: Run, sites: Served) -> None:
    primary(run)
    controller = sites.controllers["B"]

    async def refuse(*_: object, force: bool = False) -> None:
        raise Busy("not now")

    sites.controllers["A"].pairs.fail = Conflict("no")
    controller.pairs.delete = refuse  # type: ignore[assignment,method-assign]
    code, _, err = pair(run)
    assert code == ExitCode.CONFLICT
    assert "warning: secondary side of the pair could not be undone: B: not now" in err


def refusals() -> list[tuple[tuple[str, ...], tuple[str, ...], ExitCode, str]]:
    volume = ("--size", "4MiB", "--pool", "p", "--group", "g1")
    create = ("pair", "create", "A:g1", "B:g1")
    return [
        ((), create, ExitCode.NOT_FOUND, "B: no group named g1"),
        (("group create B:g1",), create, ExitCode.NOT_FOUND, "there is no volume B:v1 for v1; create it, or give"),
        (("group create B:g1", "volume create B:v1 --size 4MiB --pool p --group g1"), create,
         ExitCode.CONFLICT, "volume B:v1 has 4 MiB, v1 has 8 MiB; both must be equal"),
        (("group create B:g2", "volume create B:v1 --size 8MiB --pool p --group g2", "group create B:g1"), create,
         ExitCode.CONFLICT, "is in group g2, not in g1"),
        ((), ("pair", "create", "A:g1", "A:g2"), ExitCode.USAGE, "name two controllers"),
        ((), ("pair", "create", "A:g2", "B:g2"), ExitCode.NOT_FOUND, "no group named g2"),
        (("group create A:g2",), ("pair", "create", "A:g2", "B:g2"), ExitCode.CONFLICT, "has no volumes"),
        ((), (*create, "--map", "x=y"), ExitCode.NOT_FOUND, "--map: x: not in group A:g1"),
        ((), ("volume", "create", "A:v1", *volume), ExitCode.CONFLICT, "exists already"),
        ((), ("volume", "show", "A:none"), ExitCode.NOT_FOUND, "no volume named none"),
        ((), ("volume", "resize", "A:v1", "--size", "1MiB"), ExitCode.REFUSED, "shrinking it would lose data"),
        ((), ("group", "delete", "A:g1", "--yes"), ExitCode.CONFLICT, "has volumes: v1, v2"),
        ((), ("group", "delete", "A:g1"), ExitCode.USAGE, "give --yes"),
        ((), ("takeover", "A"), ExitCode.NOT_FOUND, "no secondary group"),
        ((), ("takeover", "A", "--json"), ExitCode.USAGE, "--json cannot ask"),
    ]  # fmt: skip


@pytest.mark.parametrize(("before", "words", "code", "text"), refusals())
def test_refused_order_is_one_line_with_its_exit_code(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[str, ...],
    words: tuple[str, ...],
    code: ExitCode,
    text: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    primary(run)
    for order in before:
        good(run, *order.split())
    status, out, err = run(*words)
    assert (status, out) == (code, "")
    assert text in err
    assert err.count("\n") == 1


def test_peer_that_is_not_configured_is_named(run: Run, sites: Served) -> None:
    primary(run)
    sites.controllers["B"].peers = []
    code, _, err = pair(run)
    assert code == ExitCode.CONFLICT
    assert "controller B has no peer A; add a [[peer]] section" in err


def test_forget_says_what_is_lost_before_it_asks(run: Run, sites: Served) -> None:
    primary(run)
    assert pair(run)[0] == 0
    code, _, err = run("group", "forget", "A:g1", "--yes")
    assert code == ExitCode.CONFLICT
    assert "works" in err
    assert run("group", "recover", "A:g1")[0] == ExitCode.CONFLICT
    group = sites.controllers["A"].storage.groups["g1"]
    sites.do(lambda: group.hold(Corrupt("journal record 7 is damaged")))
    code, out, err = run("group", "forget", "A:g1")
    assert (code, out) == (ExitCode.USAGE, "")
    assert "everything in volumes v1, v2 of group A:g1 is lost for good" in err
    assert "the pair with B:g1 is deleted here" in err
    code, out, err = run("group", "forget", "A:g1", "--yes")
    assert (code, out) == (0, "group g1 forgotten, and volumes v1, v2\n")
    assert "B was not connected" in err
    assert answer(run, "group", "list", "-c", "A") == []


def test_errors_for_scripts_are_json_on_standard_error(run: Run) -> None:
    code, out, err = run("volume", "show", "A:none", "--json")
    assert (code, out) == (ExitCode.NOT_FOUND, "")
    document = json.loads(err)
    assert (document["code"], document["exit_code"]) == ("not-found", 5)
    assert run("volume", "show", "A:a/b", "--json")[0] == ExitCode.USAGE


@pytest.mark.parametrize(
    ("error", "code"),
    [(Busy("x"), ExitCode.BUSY), (NoSpace("x"), ExitCode.NO_SPACE), (Unreachable("x"), ExitCode.UNREACHABLE)],
)
def test_kinds_of_failure_have_their_exit_codes(run: Run, sites: Served, error: Any, code: ExitCode) -> None:
    primary(run)
    assert pair(run)[0] == 0
    sites.controllers["B"].pairs.fail = error
    assert run("takeover", "B", "--yes")[0] == code


def test_wrong_token_is_exit_code_4(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGMTCTL_TOKEN", "wrong")
    code, _, err = run("system", "show")
    assert code == ExitCode.NOT_AUTHORISED
    assert "not the token in the controller's" in err


def test_environment_alone_is_enough(run: Run, sites: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("MGMTCTL_URL", sites.urls["B"])
    assert answer(run, "--token-file", str(tmp_path / "token"), "system", "show")["name"] == "B"


def test_silent_port_is_a_time_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MGMTCTL_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        code, _, err = run("--timeout", "0.2", "system", "show")
    assert code == ExitCode.TIMED_OUT
    assert "may still be under way" in err


def test_controller_that_is_about_to_start_is_waited_for(
    run: Run, sites: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))  # refuses as long as it does not listen
        monkeypatch.setenv("MGMTCTL_URL", f"http://127.0.0.1:{late.getsockname()[1]}")
        started = time.monotonic()
        assert run("--wait", "0.3", "system", "show")[0] == ExitCode.UNREACHABLE
        assert time.monotonic() - started >= 0.3
        starting = threading.Timer(0.3, late.listen)
        starting.start()
        code, _, err = run("--wait", "30", "--timeout", "0.5", "system", "show")
        starting.join()
    assert (code, "did not answer within 0.5 s" in err) == (ExitCode.TIMED_OUT, True), "it was reached, and sent once"


def test_pair_whose_sides_do_not_find_each_other_is_not_called_good(
    run: Run, sites: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_create, "CONNECT_LIMIT_S", 0.2)
    for controller in sites.controllers.values():
        controller.pairs.connected = False
    primary(run)
    code, out, err = pair(run)
    assert (code, "created" in out) == (ExitCode.UNREACHABLE, True)
    assert "nothing is mirrored: not connected yet; B says: A at 127.0.0.1:2: Connection refused" in err
    assert "; A says: B at" in err
    code, out, err = pair(run, "--json")
    assert (code, json.loads(out)["primary"]["connected"]) == (ExitCode.UNREACHABLE, False)
    assert json.loads(err)["code"] == "unreachable"
    assert "PAIR, cut" in good(run, "status")


def test_takeover_says_what_is_lost_and_does_it(run: Run, sites: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    primary(run)
    assert pair(run)[0] == 0
    out = good(run, "takeover", "B", "--preview")
    assert "preview, nothing was changed" in out
    assert "2 writes, 8 KiB" in out
    assert "g1/v1" in out
    assert sites.controllers["B"].pairs.taken_over == []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    code, _, err = run("takeover", "B")
    assert (code, sites.controllers["B"].pairs.taken_over) == (ExitCode.REFUSED, [])
    assert "not confirmed" in err
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    code, out, _ = run("takeover", "B")
    assert (code, sites.controllers["B"].pairs.taken_over) == (0, ["default"])
    assert "took 0.500 s (RTO)" in out
    assert answer(run, "takeover", "B", "--yes")["rto_s"] == 0.5


def test_status_shows_all_controllers(run: Run) -> None:
    primary(run)
    assert pair(run)[0] == 0
    out = good(run, "status")
    for part in ("A:g1", "B:g1", "secondary", "PAIR", "1.500 s", "4 KiB", "group g2 for 2.000 s", "no connection"):
        assert part in out, out
    document = answer(run, "status")
    assert [one["name"] for one in document["controllers"]] == ["A", "B"]
    assert document["controllers"][1]["groups"][0]["lag_s"] == 1.5
    assert [one["name"] for one in answer(run, "status", "-c", "B")["controllers"]] == ["B"]


def test_status_shows_the_rest_when_one_does_not_answer(run: Run, tmp_path: Path) -> None:
    primary(run)
    path = tmp_path / "m.toml"
    path.write_text(path.read_text() + '\n[controllers.gone]\nurl = "http://127.0.0.1:1"\n')
    code, out, err = run("status")
    assert code == ExitCode.UNREACHABLE
    assert "A:g1" in out
    assert "unreachable" in out
    assert err.startswith("warning: controller gone (http://127.0.0.1:1) does not answer")
    code, out, _ = run("status", "--json")
    assert [one["reachable"] for one in json.loads(out)["controllers"]] == [True, True, False]


def test_status_on_a_narrow_terminal_breaks_no_cell(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    primary(run)
    assert pair(run)[0] == 0
    monkeypatch.setenv("COLUMNS", "80")
    out = good(run, "status", "--watch", "--interval", "0.1", "--count", "1")
    lines = [line.rstrip() for line in out.splitlines()]
    assert "A:g1 primary of B:g1, async, connected" in lines
    assert "  PAIR   lag 1.500 s, 4 KiB" in lines
    assert "  held by group g2 for 2.000 s: no connection" in lines
    assert all(len(line) <= 80 for line in lines)


def test_status_watch_refreshes(run: Run) -> None:
    primary(run)
    out = good(run, "status", "--watch", "--interval", "0.1", "--count", "3", "--json")
    assert len([json.loads(line) for line in out.splitlines()]) == 3
    assert "A:g1" in good(run, "status", "--watch", "--interval", "0.1", "--count", "2")


def test_program_runs_as_a_module(sites: Served) -> None:
    command = [sys.executable, "-m", "mgmtctl", "system", "show", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["name"] == "A"


def test_reader_that_goes_away_gets_no_traceback(sites: Served) -> None:
    command = f"{sys.executable} -m mgmtctl metrics | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr


def test_secondary_is_made_with_the_rules_about_hosts(run: Run) -> None:
    primary(run)
    rule = "network=10.0.0.0/8,certificate=db1"
    assert good(run, "volume", "allow", "A:v1", "--to", rule, "--to", "read-only") == (
        f"volume v1 is for {rule}; read-only\n"
    )
    words = ("volume", "create", "A:v3", "--size", "8MiB", "--pool", "p", "--group", "g1", "--nobody")
    assert good(run, *words) == "volume v3 created: 8 MiB in group g1\n"
    assert pair(run)[0] == 0
    shown = {item["name"]: item["allow"] for item in answer(run, "volume", "list", "-c", "B")}
    assert shown == {
        "v1": [
            {"network": "10.0.0.0/8", "certificate": "db1", "read_only": False},
            {"network": None, "certificate": None, "read_only": True},
        ],
        "v2": None,
        "v3": [],
    }
    assert "no host" in good(run, "volume", "show", "B:v3")
    assert good(run, "volume", "allow", "B:v3", "--everyone") == "volume v3 is for every host\n"
    assert run("volume", "disconnect", "B:v3", "1")[0] == ExitCode.NOT_FOUND
    assert good(run, "volume", "connections", "-c", "B") == "none\n"
