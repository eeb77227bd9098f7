"""Any answers to mgmtctl: every order ends in its time with a documented exit code, and with one line if it failed."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

from mgmtctl.errors import ExitCode
from mgmtctl.main import main
from tests.fuzz.source import Source
from tests.unit.management.api_thread import served
from tests.unit.management.fake_controller import TOKEN

_TIMEOUT_S: Final = "0.2"
_ORDERS: Final = (
    "status", "status --json", "system show", "system config", "system checkpoint", "metrics", "disk list",
    "disk create d --size 1MiB", "pool list", "pool create p --disk d", "group list", "group list --json",
    "group show g1", "group create g1", "group delete g1 --yes", "group recover g1", "group forget g1 --yes",
    "volume list", "volume show v", "volume create v --size 1MiB --pool p --group g1", "volume resize v --size 2MiB",
    "volume delete v --yes", "volume connections", "volume disconnect v 1", "volume allow v --everyone", "pair list",
    "pair show g1", "pair suspend g1", "takeover --preview", "takeover --yes",
)  # fmt: skip
_VALUES: Final[tuple[Any, ...]] = (
    None, 0, -1, 1 << 70, 1.5, True, "", "x", "\0\n\x1b[31m", "\U0001f600", [], {}, [{}], "9" * 400, "NaN",
)  # fmt: skip
_STATUS: Final = (b"200 OK", b"201 Created", b"404 Not Found", b"500 Oh", b"503 Busy", b"302 Found", b"600 x", b"99 x")
_HEADS: Final = (
    b"", b"Content-Type: text/html\r\n", b"Content-Encoding: gzip\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 99999\r\n", b"Content-Length: -1\r\n", b"Location: http://[::1\r\n", b"Set-Cookie: \xff=;;\r\n",
    b"X: " + b"y" * 200_000 + b"\r\n", b"no colon\r\n",
)  # fmt: skip


def run(data: bytes) -> None:
    """Give an order to a server that answers as ``data`` decides."""
    source = Source(data)
    words = source.pick(_ORDERS).split()
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory(prefix="rc-fuzz-") as directory, _answering(source) as url:
        path = Path(directory) / "m.toml"
        path.write_text(f'default = "A"\n[controllers.A]\nurl = "{url}"\ntoken = "{TOKEN}"\n')
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.dict(os.environ, clear=True):
            code = main(["--config", str(path), "--timeout", _TIMEOUT_S, *words])
    said = err.getvalue()
    assert code in set(ExitCode), (words, code)
    assert "unexpected error (" not in said, (words, said)
    lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
    if "status" not in words:  # that shows who does not answer
        assert len(lines) == int(code != 0), (words, code, said)


@contextlib.contextmanager
def _answering(source: Source) -> Iterator[str]:
    """A server that answers every request on a connection of its own; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()
    answers = [_answer(source) for _ in range(4)]

    def serve() -> None:
        number = 0
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(1)
                    connection.recv(1 << 16)
                    connection.sendall(answers[number % len(answers)])
                    if source.left and answers[0][:1] == b"H" and len(answers[0]) % 5 == 4:
                        stop.wait(0.5)  # as if more came
            number += 1

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        with contextlib.suppress(OSError):  # it may wait in accept
            socket.create_connection(listener.getsockname(), 1).close()
        thread.join(5)
        listener.close()


def _answer(source: Source) -> bytes:
    if source.number(1) % 8 == 7:
        return source.take(source.number(1))
    body = _body(source)
    status, head = source.pick(_STATUS) if source.number(1) % 2 else b"200 OK", source.pick((b"", b"", b"", *_HEADS))
    length = b"" if b"Content-Length" in head or b"chunked" in head else b"Content-Length: %d\r\n" % len(body)
    answer = b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n" + head + length + b"\r\n" + body
    return answer[: source.number(2) % len(answer)] if source.number(1) % 8 == 7 else answer


def _body(source: Source) -> bytes:
    kind = source.number(1) % 8
    if kind == 7:
        return source.take(source.number(1))
    if kind == 6:
        return b"[" * source.pick((10, 5000, 200_000))
    document = json.loads(source.pick(_sound_answers()))
    if kind == 5:
        document = {"code": "conflict", "message": "no\nway", "details": {"a": 1}}
    for _ in range(source.number(1) % 3):
        _change(source, document)
    return json.dumps(document).encode()


def _change(source: Source, document: Any) -> None:
    """Put another value somewhere into a document."""
    while True:
        keys = sorted(document) if isinstance(document, dict) else range(len(document))
        if not keys:
            return
        key = source.pick(list(keys))
        inner = document[key]
        if isinstance(inner, dict | list) and inner and source.number(1) % 4:
            document = inner
            continue
        document[key] = source.pick(_VALUES)
        return


@functools.cache
def _sound_answers() -> tuple[bytes, ...]:
    """What a controller answers."""
    import httpx

    paths = ("system", "status", "disks", "pools", "groups", "volumes", "pairs", "config", "groups/g1", "volumes/v",
             "volumes/v/sessions", "pairs/g1", "takeover")  # fmt: skip
    orders = (
        ("disks", {"name": "d", "size": 8 << 20}), ("pools", {"name": "p", "disks": ["d"]}), ("groups", {"name": "g1"}),
        ("volumes", {"name": "v", "size": 1 << 20, "pool": "p", "group": "g1"}),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="rc-fuzz-") as directory:
        with served(Path(directory), {"name": "A"}) as controllers:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            with httpx.Client(base_url=f"{controllers.urls['A']}/v1", headers=headers) as client:
                for path, order in orders:
                    assert client.post(path, json=order).is_success, path
                return tuple(client.get(path).content for path in paths)
