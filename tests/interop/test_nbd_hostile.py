"""Clients that behave badly, and that a well-behaved one beside them does not notice."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.interop.nbd_served import MIB, NbdServed, receive, wait_for
from tests.interop.raw_client import RawClient, Style
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request


@pytest.fixture
def served(tmp_path: Path) -> Iterator[NbdServed]:
    """A server with tight limits."""
    server = NbdServed(tmp_path, "--max-connections", "20", "--handshake-timeout", "1.5")
    yield server
    if server.process.poll() is None:
        server.kill()


def raw(served: NbdServed, *, negotiate: bool = True) -> socket.socket:
    """Return a plain socket, in the transmission phase with simple replies if ``negotiate``."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(served.socket))
    if negotiate:
        assert receive(sock, 18)[:16] == b"NBDMAGICIHAVEOPT"
        sock.sendall(struct.pack(">I", 3) + client.option(client.EXPORT_NAME, b"vol"))
        receive(sock, 10)
    return sock


def good(served: NbdServed) -> Any:
    """Return a well-behaved client that has written and read."""
    handle = nbd.NBD()
    handle.connect_uri(served.uri("small"))
    handle.pwrite(b"good" * 1024, 0)
    assert handle.pread(4096, 0) == b"good" * 1024
    return handle


def test_connections_beyond_the_limit_are_closed_and_others_go_on(served: NbdServed) -> None:
    handle = good(served)
    with contextlib.ExitStack() as stack:
        for _ in range(19):
            stack.enter_context(raw(served))
        greeted = 0
        for sock in [stack.enter_context(raw(served, negotiate=False)) for _ in range(11)]:
            with contextlib.suppress(ConnectionError):
                greeted += bool(sock.recv(18))
        assert greeted == 0
        assert handle.pread(4, 0) == b"good"
    wait_for(lambda: served.events().count("nbd-connection-refused") == 11)
    with raw(served):
        pass
    handle.shutdown()


def test_handshake_that_stalls_is_ended(served: NbdServed) -> None:
    handle = good(served)
    with raw(served, negotiate=False) as silent, raw(served, negotiate=False) as slow:
        slow.sendall(struct.pack(">I", 3) + client.option(client.GO, bytes(100))[:30])
        for sock in (silent, slow):
            receive(sock, 18)
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
    assert served.events().count("handshake took too long") == 2
    assert handle.pread(4, 0) == b"good"
    handle.shutdown()


def test_list_flood_without_reading_costs_nothing(served: NbdServed) -> None:
    with raw(served, negotiate=False) as sock:
        sock.setblocking(False)
        before = served.resident()
        data = struct.pack(">I", 3) + client.option(client.LIST) * 100_000
        view = memoryview(data)
        deadline = time.monotonic() + 1
        while view and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                view = view[sock.send(view) :]
        assert view, "the server took requests whose answers nobody reads"
        assert served.resident() - before < 4 * MIB
    good(served).shutdown()


def test_reads_without_taking_the_data_are_bounded(served: NbdServed) -> None:
    handle = good(served)
    before = served.resident()
    with raw(served) as sock:
        sock.setblocking(False)
        data = b"".join(request(client.READ, n, 0, 32 * MIB) for n in range(1000))
        with contextlib.suppress(BlockingIOError):
            sock.send(data)
        time.sleep(0.5)
        assert handle.pread(4, 0) == b"good"
        assert served.resident() - before < 80 * MIB
    handle.shutdown()


def test_client_that_vanishes_in_the_middle_of_a_write(served: NbdServed) -> None:
    handle = good(served)
    for cut in (10, 28, 100, 5000, 3 * MIB):
        with raw(served) as sock:
            sock.sendall(request(client.WRITE, 1, 8 * MIB, data=b"\xee" * (4 * MIB))[:cut])
    wait_for(lambda: served.events().count("nbd-session-closed") == 5)
    assert handle.pread(4, 0) == b"good"
    handle.shutdown()
    served.stop()


def test_slow_sender_gets_its_answer(served: NbdServed) -> None:
    with raw(served) as sock:
        for byte in request(client.WRITE, 7, 100, data=b"slow"):
            sock.sendall(bytes([byte]))
        assert receive(sock, 16) == struct.pack(">IIQ", 0x67446698, 0, 7)


def test_half_closed_client_gets_its_answers(served: NbdServed) -> None:
    with raw(served) as sock:
        sock.sendall(request(client.WRITE, 1, 0, data=b"half", flags=client.FUA) + request(client.FLUSH, 2))
        sock.shutdown(socket.SHUT_WR)
        answers = receive(sock, 32)
        assert {answers[8:16], answers[24:32]} == {struct.pack(">Q", 1), struct.pack(">Q", 2)}
        assert sock.recv(1) == b""
    with raw(served) as sock:
        sock.sendall(request(client.READ, 3, 0, 4))
        assert receive(sock, 20)[16:] == b"half"


def test_nonsense_is_closed(served: NbdServed) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n" * 10, os.urandom(1000), bytes(1000)):
        for negotiate in (False, True):
            with raw(served, negotiate=negotiate) as sock, contextlib.suppress(ConnectionError):
                sock.sendall(data)
                while sock.recv(1000):
                    pass
    good(served).shutdown()


def test_oversized_write_is_thrown_away_and_the_next_request_served(served: NbdServed) -> None:
    with RawClient(served.socket, "vol", "structured") as raw_client:
        before = served.resident()
        reply = raw_client.ask(client.WRITE, 0, data=bytes(64 * MIB))
        assert reply.error == client.EINVAL
        assert served.resident() - before < 20 * MIB
        assert not raw_client.ask(client.WRITE, 0, data=b"next").error


@pytest.mark.parametrize("style", ["simple", "structured", "extended"])
def test_a_thousand_requests_at_once(served: NbdServed, style: Style) -> None:
    with RawClient(served.socket, "vol", style) as raw_client:
        blocks = [bytes([n % 255 + 1]) * 512 for n in range(1000)]
        writes = [raw_client.encode(client.WRITE, n, n * 512, 0, 0, block) for n, block in enumerate(blocks)]
        raw_client.socket.sendall(b"".join(writes))
        assert not any(reply.error for reply in raw_client.answers(1000).values())
        reads = [raw_client.encode(client.READ, n, n * 512, 512, 0, None) for n in range(1000)]
        raw_client.socket.sendall(b"".join(reads))
        replies = raw_client.answers(1000)
        assert [replies[n].content() for n in range(1000)] == blocks


def test_thousands_of_connections_leave_nothing_behind_and_a_client_beside_them_does_not_notice(
    served: NbdServed,
) -> None:
    good(served).shutdown()
    files = served.open_files()
    memory = 0
    for turn in range(3):
        with well_behaved(served):
            for number in range(1000):
                sock = raw(served, negotiate=number % 3 != 0)
                if number % 3 == 1:
                    sock.sendall(request(client.WRITE, 1, 0, data=b"x" * 1000)[: number + 1])
                elif number % 6 == 2:
                    sock.shutdown(socket.SHUT_WR)
                sock.close()
        wait_for(lambda: served.open_files() == files)
        if not turn:
            memory = served.resident()
    assert served.resident() - memory < 4 * MIB
    good(served).shutdown()
    served.stop()


@contextlib.contextmanager
def well_behaved(served: NbdServed) -> Iterator[None]:
    """Run a client that writes and reads without a pause; every answer must be right."""
    stop = threading.Event()
    served_right: list[int] = []

    def work() -> None:
        with RawClient(served.socket, "small", "structured") as mine:
            for number in itertools.count(1):
                data = number.to_bytes(8, "big") * 512
                assert not mine.ask(client.WRITE, 65_536, data=data).error
                assert mine.ask(client.READ, 65_536, len(data)).content() == data
                if stop.is_set():
                    served_right.append(number)
                    return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert served_right[0] > 10
