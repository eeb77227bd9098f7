"""hostsim against another project's server, nbdkit, on a UNIX socket: the client adapter and whole runs with kill -9.

These are the tests in this folder that start processes: what a simulated host says about a controller is worth only as
much as what it says about a server that is known to be good, or known to lose data.
"""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from deploy.demo.processes import Process
from hostsim.errors import CommandFailed, ConnectFailed, ConnectionLost, HostError
from hostsim.nbdclient import NbdConnection

SIZE = 4 << 20
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine on each of the event loops that hosts run on."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner.run


class Server:
    """nbdkit with one image file; killed and started again as a test likes."""

    def __init__(self, directory: Path, name: str) -> None:
        self.image = directory / f"{name}.img"
        self.uri = f"nbd+unix:///?socket={directory}/{name}.sock"
        self._socket = directory / f"{name}.sock"
        self._directory = directory
        self._process: Process | None = None
        with self.image.open("wb") as file:
            file.truncate(SIZE)

    def start(self, *options: str, parameters: tuple[str, ...] = ()) -> None:
        self._socket.unlink(missing_ok=True)
        command = ["nbdkit", "-f", "-U", str(self._socket), *options, "file", str(self.image), *parameters]
        self._process = Process(command, self._directory / "nbdkit.log")
        self._process.wait_until_it_listens(self._socket)

    def kill(self) -> None:
        if self._process is not None:
            self._process.stop(signal.SIGKILL)
            self._process = None


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name: a UNIX socket's path has room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hostsim-") as name:
        yield Path(name)


@pytest.fixture
def servers(directory: Path) -> Iterator[list[Server]]:
    made = [Server(directory, f"v{number}") for number in range(3)]
    yield made
    for server in made:
        server.kill()


def hostsim(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hostsim", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)


def volumes(servers: list[Server]) -> list[str]:
    return [word for server in servers for word in ("--volume", server.uri)]


def images(servers: list[Server]) -> list[str]:
    return [word for server in servers for word in ("--volume", str(server.image))]


# ---- the client adapter --------------------------------------------------------


def test_commands(servers: list[Server], run: Run) -> None:
    server = servers[0]
    server.start()

    async def work() -> None:
        connection = await NbdConnection.connect(server.uri)
        assert connection.size == SIZE
        assert not connection.write_time
        await asyncio.gather(*[connection.write(4096 * i, bytes([i]) * 4096) for i in range(64)])
        await connection.write(SIZE - 512, b"e" * 512, fua=True)
        await connection.flush()
        assert await connection.read(4096 * 7, 4096) == b"\7" * 4096
        await connection.zero(4096 * 7, 4096)
        await connection.trim(4096 * 8, 4096)
        data = await connection.read_all()
        assert data == server.image.read_bytes()
        assert data[4096 * 7 : 4096 * 8] == bytes(4096)
        await connection.zero_all()
        assert await connection.read_all() == bytes(SIZE)
        await connection.close()
        with pytest.raises(ConnectionLost):
            await connection.read(0, 512)

    run(work())


def test_server_without_write_times_is_used_without(servers: list[Server], run: Run) -> None:
    servers[0].start()

    async def work() -> None:
        connection = await NbdConnection.connect(servers[0].uri, write_time=True)
        assert not connection.write_time
        await connection.write(SIZE - 512, b"e" * 512, write_time=5)
        assert await connection.read(SIZE - 512, 512) == b"e" * 512
        await connection.close()

    run(work())


def test_errors_of_the_server(servers: list[Server], run: Run) -> None:
    servers[0].start("--filter=error", parameters=("error=ENOSPC", "error-pwrite-rate=100%"))
    servers[1].start("-r")

    async def work() -> None:
        full = await NbdConnection.connect(servers[0].uri)
        with pytest.raises(CommandFailed) as failed:
            await full.write(0, bytes(512))
        assert failed.value.errno == errno.ENOSPC
        assert await full.read(0, 512) == bytes(512)
        with pytest.raises(CommandFailed):
            await full.read(SIZE, 512)
        read_only = await NbdConnection.connect(servers[1].uri)
        assert read_only.read_only
        with pytest.raises(CommandFailed) as failed:
            await read_only.write(0, bytes(512))
        assert failed.value.errno == errno.EPERM
        await full.close()
        await read_only.close()

    run(work())


@pytest.mark.parametrize("uri", ["nbd+unix:///?socket=/nonexistent", "nbd://127.0.0.1:1/", "gopher://x", "nbd://[bad"])
def test_no_server(run: Run, uri: str) -> None:
    async def work() -> None:
        with pytest.raises(ConnectFailed, match=r"."):
            await NbdConnection.connect(uri)

    run(work())


def test_server_that_says_nothing(directory: Path, run: Run) -> None:
    async def work() -> None:
        released = asyncio.Event()

        async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await released.wait()
            writer.close()

        path = directory / "silent.sock"
        server = await asyncio.start_unix_server(silent, path)
        with pytest.raises(ConnectFailed, match="no answer"):
            await NbdConnection.connect(f"nbd+unix:///?socket={path}", timeout_s=0.2)
        released.set()
        server.close()
        await server.wait_closed()

    run(work())


def test_kill_ends_commands_in_flight_with_unknown_outcome(servers: list[Server], run: Run) -> None:
    server = servers[0]
    server.start("--filter=delay", parameters=("wdelay=60", "rdelay=60"))

    async def work() -> None:
        connection = await NbdConnection.connect(server.uri)
        writes = [asyncio.create_task(connection.write(4096 * i, bytes(4096))) for i in range(8)]
        reads = [asyncio.create_task(connection.read(4096 * i, 4096)) for i in range(8)]
        await asyncio.sleep(0.05)
        server.kill()
        for ended in await asyncio.gather(*writes, *reads, return_exceptions=True):
            assert isinstance(ended, ConnectionLost)
        assert not connection.alive
        with pytest.raises(ConnectionLost):
            await connection.write(0, bytes(512))
        await connection.close()

    run(work())


def test_write_time_must_be_given_where_it_was_negotiated(servers: list[Server]) -> None:
    servers[0].start()

    async def work() -> None:
        connection = await NbdConnection.connect(servers[0].uri)
        connection.write_time = True
        with pytest.raises(HostError, match="a time with every write"):
            await connection.write(0, bytes(512))
        await connection.close()

    asyncio.run(work())


# ---- the bank ------------------------------------------------------------------


def test_bank_over_a_kill_of_its_servers(servers: list[Server], directory: Path) -> None:
    """nbdkit has what it acknowledged in the page cache: nothing acknowledged is missing, and the hosts go on after."""
    record = directory / "record.jsonl"
    for server in servers:
        server.start()
    done = hostsim(
        "format", *volumes(servers), "--hosts", "open:2", "--chains", "3", "--block-size", "512", "--seed", "5"
    )
    assert done.returncode == 0, done.stderr
    arguments = [*volumes(servers), "--hosts", "open:2", "--seconds", "0", "--record", str(record), "--json"]
    hosts = Process([sys.executable, "-m", "hostsim", "run", *arguments], directory / "hosts.log")
    _until_written(record)
    for server in servers:
        server.kill()
    assert hosts.wait(30) == 3
    checked = hostsim("check", *images(servers), "--record", record, "--lossless", "--json")
    assert checked.returncode == 0, checked.stdout
    first = json.loads(checked.stdout)
    assert first["missing_writes"] == 0
    assert sum(chain["writes"] for chain in first["chains"]) > 100
    for server in servers:
        server.start()
    arguments[arguments.index("--seconds") + 1] = "0.3"
    again = hostsim("run", *arguments)
    assert again.returncode == 0, again.stderr
    checked = hostsim("check", *volumes(servers), "--record", record, "--lossless", "--json")
    assert checked.returncode == 0, checked.stdout
    assert sum(c["writes"] for c in json.loads(checked.stdout)["chains"]) > sum(c["writes"] for c in first["chains"])


def test_bank_reconnects(servers: list[Server], directory: Path) -> None:
    record = directory / "record.jsonl"
    for server in servers:
        server.start()
    assert hostsim("format", *volumes(servers), "--hosts", "open:3", "--chains", "2").returncode == 0
    arguments = [*volumes(servers), "--hosts", "open:3", "--seconds", "0", "--record", str(record), "--json"]
    log = directory / "hosts.log"
    hosts = Process([sys.executable, "-m", "hostsim", "run", *arguments, "--reconnect", "30"], log)
    for server in servers:
        _until_written(record)
        server.kill()
        server.start()
    _until_written(record)
    assert hosts.stop() == 0, log.read_text()
    result = json.loads(log.read_text())
    assert result["reconnects"] == 9
    assert hostsim("check", *images(servers), "--record", record, "--lossless").returncode == 0


def test_check_finds_a_volume_rolled_back(servers: list[Server], directory: Path) -> None:
    for server in servers:
        server.start()
    assert hostsim("format", *volumes(servers), "--hosts", "open:2", "--chains", "3").returncode == 0
    run = ["run", *volumes(servers), "--hosts", "open:2", "--seconds", "0.2"]
    assert hostsim(*run).returncode == 0
    for server in servers:
        shutil.copy(server.image, server.image.with_suffix(".old"))
    assert hostsim(*run).returncode == 0
    for server in servers:
        current = server.image.read_bytes()
        shutil.copy(server.image.with_suffix(".old"), server.image)
        checked = hostsim("check", *images(servers))
        assert checked.returncode == 1
        assert "NOT CONSISTENT" in checked.stdout
        server.image.write_bytes(current)
    assert hostsim("check", *images(servers)).returncode == 0


def test_check_of_volumes_without_a_bank_has_its_own_verdict_and_code(directory: Path) -> None:
    blank = directory / "blank"
    blank.write_bytes(bytes(1 << 20))
    checked = hostsim("check", "--volume", str(blank))
    assert checked.returncode == 4
    assert "NOTHING TO JUDGE" in checked.stdout
    assert "consistent" not in checked.stdout
    checked = hostsim("check", "--volume", str(blank), "--json")
    assert (checked.returncode, json.loads(checked.stdout)["formatted"]) == (4, False)
    foreign = directory / "foreign"
    foreign.write_bytes(bytes(1080) + b"another file system".ljust(1 << 20, b"!"))
    for volumes in (("--volume", str(foreign)), ("--volume", str(blank), "--volume", str(foreign))):
        checked = hostsim("check", *volumes)
        assert checked.returncode == 4
        assert "NOTHING TO JUDGE" in checked.stdout
        assert "CONSISTENT" not in checked.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["check", "--volume", "/nonexistent"], 2, "No such file"),
        (["check", "--volume", "nbd+unix:///?socket=/nonexistent"], 3, "No such file"),
        (["check", "--volume", "x", "--lossless"], 2, "needs --record"),
        (["run", "--volume", "nbd://h/v", "--hosts", "printer:1"], 2, "mainframe:N or open:N"),
        (["run", "--volume", "nbd://127.0.0.1:1/v"], 3, "refused"),
        (["run", "--volume", "x"], 2, "not an NBD URI"),
        (["format", "--volume", "nbd://h/v", "--volume", "gopher://h/v"], 2, "not an NBD URI"),
        (["write-verify", "--volume", "x", "--record", "r"], 2, "not an NBD URI"),
        (["verify", "--volume", "x", "--record", "/nonexistent"], 2, "No such file"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], code: int, says: str) -> None:
    done = hostsim(*arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def _until_written(record: Path, bytes_more: int = 20_000) -> None:
    """Wait until the record has grown: hosts are at work."""
    size = record.stat().st_size if record.exists() else 0
    deadline = time.monotonic() + 60
    while not record.exists() or record.stat().st_size < size + bytes_more:
        assert time.monotonic() < deadline, "the hosts do not write"
        time.sleep(0.02)


# ---- write and verify ----------------------------------------------------------


def test_write_verify_over_kills(servers: list[Server], directory: Path) -> None:
    server = servers[0]
    server.start()
    record = directory / "record.jsonl"
    log = directory / "load.log"
    arguments = ["--volume", server.uri, "--record", str(record), "--blocks", "512", "--seconds", "0", "--json"]
    load = Process([sys.executable, "-m", "hostsim", "write-verify", *arguments, "--reconnect", "30"], log)
    for _ in range(3):
        _until_written(record)
        server.kill()
        server.start()
    _until_written(record)
    assert load.stop() == 0, log.read_text()
    result = json.loads(log.read_text())
    assert (result["reconnects"], result["whole_reads"]) == (3, 3)
    assert hostsim("verify", "--volume", server.uri, "--record", record).returncode == 0
    done = hostsim("write-verify", *arguments[:-3], "--seconds", "0.2", "--block-size", "4096")
    assert done.returncode == 0, done.stdout
    assert hostsim("verify", "--volume", server.image, "--record", record).returncode == 0


def test_write_verify_finds_what_was_lost(servers: list[Server], directory: Path) -> None:
    """The image is rolled back while the server is down, as a controller would that forgot a part of its journal."""
    server = servers[0]
    server.start()
    record = directory / "record.jsonl"
    log = directory / "load.log"
    arguments = ["--volume", server.uri, "--record", str(record), "--blocks", "512", "--seconds", "0", "--json"]
    load = Process([sys.executable, "-m", "hostsim", "write-verify", *arguments, "--reconnect", "30"], log)
    _until_written(record)
    server.kill()
    shutil.copy(server.image, directory / "old")
    server.start()
    _until_written(record)
    server.kill()
    shutil.copy(directory / "old", server.image)
    server.start()
    assert load.wait(30) == 1
    assert json.loads(log.read_text())["problem_count"] > 0
    assert hostsim("verify", "--volume", server.image, "--record", record).returncode == 1
