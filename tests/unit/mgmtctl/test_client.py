"""Servers that are no controllers: an order ends in its time, and takes no more memory than an answer may have."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from mgmtctl import client as client_module
from mgmtctl.client import Client
from mgmtctl.errors import CliError, ExitCode
from mgmtctl.settings import Endpoint

Serve = Callable[[Iterable[bytes]], Endpoint]
_HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Answers every request with pieces, until the client has enough."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def start(pieces: Iterable[bytes]) -> Endpoint:
        def work() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        threads.append(thread)
        return Endpoint("A", f"http://127.0.0.1:{listener.getsockname()[1]}")

    yield start
    listener.close()
    for thread in threads:
        thread.join(10)


@pytest.mark.parametrize(
    "pieces",
    [
        itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
        itertools.chain(
            [_HEAD, b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"1;" + b"x" * 100 + b"\r\nx\r\n")
        ),
    ],
    ids=["no answer", "a long one"],
)
def test_answer_without_end_ends_in_time(serve: Serve, pieces: Iterable[bytes]) -> None:
    with Client(serve(pieces), 0.3) as client, pytest.raises(CliError, match="did not answer within") as failed:
        client.text("/metrics")
    assert failed.value.exit_code == ExitCode.TIMED_OUT


def test_answer_that_is_too_long_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_BYTES_MAX", 1 << 20)
    pieces = [_HEAD, b"Content-Length: 4194304\r\n\r\n", *[bytes(1 << 20)] * 4]
    with Client(serve(pieces), 10) as client, pytest.raises(CliError, match="more than 1 MiB") as failed:
        client.text("/metrics")
    assert failed.value.exit_code == ExitCode.REFUSED


def test_compressed_answer_is_not_unpacked(serve: Serve) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    head = _HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    with Client(serve([head, bomb]), 10) as client:
        assert len(client.text("/metrics")) <= len(bomb)
