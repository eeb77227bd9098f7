"""Limits of the host port, each met by a real client, while another one goes on."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.interop.nbd_served import MIB, NbdServed, receive, run_tool, wait_for
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NbdServed]:
    """A server; the test's parameter gives its options."""
    server = NbdServed(tmp_path, *request.param)
    yield server
    if server.process.poll() is None:
        server.kill()


class GoodHost:
    """A client beside the others that writes and reads without a pause, and wants every answer right."""

    def __init__(self, served: NbdServed) -> None:
        self.turns = 0
        self._handle = nbd.NBD()
        self._handle.connect_uri(served.uri("small"))
        self._stop = False
        self._thread = threading.Thread(target=self._work)
        self._failure: BaseException | None = None
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._stop:
                data = self.turns.to_bytes(8, "big") * 64
                self._handle.pwrite(data, 512 * (self.turns % 1000), nbd.CMD_FLAG_FUA if self.turns % 9 else 0)
                assert self._handle.pread(512, 512 * (self.turns % 1000)) == data
                self.turns += 1
        except BaseException as error:
            self._failure = error

    def went_on(self, turns: int = 20) -> None:
        """Wait until it has done so many more."""
        before = self.turns
        wait_for(lambda: self._failure is not None or self.turns >= before + turns)
        assert self._failure is None

    def __enter__(self) -> GoodHost:
        self.went_on(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()
        assert self._failure is None
        self._handle.shutdown()


def from_address(served: NbdServed, address: str) -> socket.socket:
    """Return a TCP connection from ``address`` that has sent nothing."""
    return socket.create_connection(("127.0.0.1", served.port), timeout=20, source_address=(address, 0))


def greeted(sock: socket.socket) -> bool:
    """Return whether the server talks to the client, or has closed the connection."""
    try:
        return len(receive(sock, 18)) == 18
    except ConnectionError:
        return False


@pytest.mark.parametrize("served", [["--max-connections", "30"]], indirect=True)
def test_silent_connections_from_many_addresses_cannot_fill_the_port(served: NbdServed) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(GoodHost(served))
        silent = [stack.enter_context(from_address(served, f"127.0.1.{number + 1}")) for number in range(60)]
        for _ in range(10):
            run_tool("nbdinfo", served.tcp_uri())
        assert "a newer connection took its place" in served.events()
        assert greeted(silent[-1])
        silent[0].settimeout(5)
        with contextlib.suppress(ConnectionError):
            while silent[0].recv(64):  # its greeting may have come, and then its end
                pass


@pytest.mark.parametrize("served", [["--max-connections", "3"]], indirect=True)
def test_port_full_of_sessions_refuses_and_keeps_them(served: NbdServed) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(GoodHost(served))
        assert not greeted(stack.enter_context(from_address(served, "127.0.0.2")))


@pytest.mark.parametrize("served", [["--max-connections", "30", "--max-per-address", "5"]], indirect=True)
def test_one_address_cannot_keep_others_out(served: NbdServed) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(GoodHost(served))
        greedy = [stack.enter_context(from_address(served, "127.0.0.2")) for _ in range(50)]
        assert sum(map(greeted, greedy)) == 5
        run_tool("nbdinfo", served.tcp_uri())
        assert greeted(stack.enter_context(from_address(served, "127.0.0.3")))
        for sock in greedy:
            sock.close()

        def admitted() -> bool:
            with from_address(served, "127.0.0.2") as again:
                return greeted(again)

        wait_for(admitted)
    served.stop()


@pytest.mark.parametrize("served", [["--idle-timeout", "1"]], indirect=True)
def test_idle_client_is_closed_and_a_busy_one_is_not(served: NbdServed) -> None:
    with GoodHost(served) as good, from_address(served, "127.0.0.1") as stuck:
        idle = nbd.NBD()
        idle.connect_uri(served.tcp_uri())
        receive(stuck, 18)
        stuck.sendall(struct.pack(">I", 3) + client.option(client.EXPORT_NAME, b"vol"))
        receive(stuck, 10)
        stuck.sendall(b"".join(request(client.READ, n, 0, 32 * MIB) for n in range(10)))
        wait_for(lambda: served.events().count("idle for 1 s") == 2)
        with pytest.raises(nbd.Error):
            idle.pread(1, 0)
        good.went_on()
        assert served.events().count("nbd-session-closed") == 2
    served.stop()


@pytest.mark.parametrize("served", [[]], indirect=True)
def test_option_that_is_too_long_is_refused_and_the_handshake_goes_on(served: NbdServed) -> None:
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    for number in range(30):
        handle.add_meta_context(f"x-{number}:" + "y" * 4000)
    handle.connect_uri(served.uri())
    assert not handle.can_meta_context("base:allocation")
    assert handle.pread(1, 0) == b"\0"
    handle.shutdown()
    served.stop()


@pytest.mark.parametrize("served", [[]], indirect=True)
def test_request_that_is_too_long_is_refused_and_the_session_goes_on(served: NbdServed) -> None:
    with GoodHost(served) as good:
        handle = nbd.NBD()
        handle.set_strict_mode(0)
        handle.connect_uri(served.uri())
        for length in (33 * MIB, 64 * MIB):
            with pytest.raises(nbd.Error) as refused:
                handle.pwrite(bytes(length), 0)
            assert refused.value.errno == "EINVAL"
            with pytest.raises(nbd.Error):
                handle.pread(length, 0)
        handle.pwrite(b"z" * (32 * MIB), 0)
        assert handle.pread(32 * MIB, 0) == b"z" * (32 * MIB)
        good.went_on()
        handle.shutdown()
    served.stop()


@pytest.mark.parametrize("served", [[]], indirect=True)
def test_host_that_vanishes_is_asked_for_within_a_minute(served: NbdServed) -> None:
    handle = nbd.NBD()
    handle.connect_uri(served.tcp_uri())

    def watched() -> bool:
        timers = run_tool("ss", "--tcp", "--numeric", "--options", "--no-header", f"sport = :{served.port}")
        return re.search(r"timer:\(keepalive,(1min|\d+sec)", timers) is not None

    wait_for(watched)
    handle.shutdown()
    served.stop()


def drop(served: NbdServed, number: int) -> None:
    """Open a connection, go one of ten ways into the protocol, and leave without a word."""
    over_tcp = number % 2
    with from_address(served, "127.0.0.1") if over_tcp else socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        if not over_tcp:
            sock.connect(str(served.socket))
        if number % 10 < 2:
            return
        sock.sendall(struct.pack(">I", 3))
        if number % 10 < 4:
            sock.sendall(client.go("vol")[: number % 30])
            return
        sock.sendall(client.option(client.EXPORT_NAME, b"vol"))
        if number % 10 < 6:
            return
        receive(sock, 28)
        if number % 10 < 8:
            sock.sendall(request(client.WRITE, 1, 4096, data=b"dropped" * 1000)[: number * 7 % 7028])
        else:
            sock.sendall(request(client.READ, 1, 0, MIB) * 3)
        if number % 3 == 0:  # RST instead of FIN
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("served", [["--max-connections", "100"]], indirect=True)
def test_thousands_of_connects_leave_nothing_behind(served: NbdServed) -> None:
    with GoodHost(served) as good:
        files = served.open_files()
        first = 0
        for turn in range(4):
            for number in range(1000):
                drop(served, number)
            wait_for(lambda: served.open_files() == files)
            good.went_on()
            if not turn:
                first = served.resident()
        assert served.resident() - first < 4 * MIB
    served.stop()


@pytest.mark.parametrize("served", [["--max-connections", "100"]], indirect=True)
def test_slow_senders_and_half_open_sockets_hold_nobody_up(served: NbdServed) -> None:
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(GoodHost(served))
        files = served.open_files()
        sockets = []
        for number in range(60):
            sock = stack.enter_context(from_address(served, "127.0.0.1"))
            receive(sock, 18)
            sock.sendall(struct.pack(">I", 3) + client.option(client.EXPORT_NAME, b"vol"))
            receive(sock, 10)
            sockets.append(sock)
            if number % 3 == 0:
                sock.sendall(request(client.WRITE, 1, 0, data=bytes(2 * MIB))[: 28 + number * 1000])
            elif number % 3 == 1:
                sock.sendall(request(client.READ, 1, 0, 4096))
                sock.shutdown(socket.SHUT_WR)
        before = served.resident()
        for _ in range(20):
            for sock in sockets[::3]:
                sock.sendall(b"\0")
            good.went_on()
        for sock in sockets[1::3]:
            assert len(receive(sock, 16 + 4096)) == 16 + 4096
            assert sock.recv(1) == b"", "a client that sends nothing more is closed when it has its answers"
        assert served.resident() - before < 16 * MIB
        for sock in sockets:
            sock.close()
        wait_for(lambda: served.open_files() == files)
    served.stop()


@pytest.mark.parametrize("served", [["--max-connections", "2"]], indirect=True)
def test_tools_are_refused_cleanly_when_there_is_no_place(served: NbdServed) -> None:
    held: list[Any] = []
    for _ in range(2):
        handle = nbd.NBD()
        handle.connect_uri(served.uri())
        held.append(handle)
    for tool in (("nbdinfo",), ("qemu-img", "info")):
        done = subprocess.run([*tool, served.tcp_uri()], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode not in (0, None)
    held.pop().shutdown()
    wait_for(lambda: "nbd-session-closed" in served.events())
    run_tool("nbdinfo", served.tcp_uri())
    held.pop().shutdown()
    served.stop()
