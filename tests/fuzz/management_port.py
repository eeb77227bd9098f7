"""Any bytes on the management port, from several connections at once: each is answered or closed, others are served.

What an answer says is the target ``management``; here it is HTTP itself: request lines, headers, lengths, chunks,
pipelines, halves, clients that do not read, and wrong tokens (I17, F35-F37).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from pathlib import Path
from typing import Final

from controllerd.management.app import create_app
from controllerd.management.guard import GuardSettings
from controllerd.management.server import HEADER_BYTES_MAX, ApiServer, ApiSettings
from tests.fuzz.source import Source
from tests.unit.management.fake_controller import TOKEN, fake_controller

_BODY_MAX: Final = 4096
_CONNECTIONS_MAX: Final = 8
_READ_BYTES: Final = 256 << 10
"""What one read of the loop may bring, over the limit of a header."""
_QUIET_S: Final = 0.01
_SOUND_S: Final = 20.0
_METHODS: Final = (b"GET", b"POST", b"PUT", b"", b"get", b"PRI", b"OPTIONS", b"CONNECT", b"G\x00T", b"X" * 300)
_PATHS: Final = (
    b"/healthz", b"/v1/status", b"/v1/groups", b"/openapi.json", b"", b"*", b"/%00", b"/%ff%fe", b"//", b"/../../etc",
    b"http://other/v1/status", b"/v1/groups/" + b"a" * 9000, b"/v1/status?" + b"a=" * 3000, b"/\xff", b"/v1/x y",
)  # fmt: skip
_VERSIONS: Final = (b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"", b"http/1.1")
_KNOWN: Final = b"Authorization: Bearer " + TOKEN.encode()
_HEADERS: Final = (
    _KNOWN, _KNOWN, b"Authorization: Bearer wrong", b"Authorization:", b"Authorization: Bearer \xff\xfe",
    b"authorization: basic YTpi", b"Content-Type: application/json", b"Content-Length: 2", b"Content-Length: -1",
    b"Content-Length: 4097", b"Content-Length: 99999999999999999999999", b"Content-Length: 1, 2",
    b"Content-Length: 2,2", b"Content-Length: 0x10", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked", b"Expect: 100-continue", b"Connection: close", b"Connection: keep-alive",
    b"Connection: upgrade", b"Upgrade: websocket", b"Host: again", b" folded", b"no colon", b": no name",
    b"X-\x00: y", b"X: " + b"y" * 9000, b"X: y\rZ: z", b"Cookie: \xf0\x9f\x98\x80",
)  # fmt: skip
_BODIES: Final = (
    b"", b"{}", b"2\r\n{}\r\n0\r\n\r\n", b"0\r\n\r\n", b"ffffffffffffffffffff\r\n", b"2;" + b"x" * 5000 + b"\r\n{}\r\n",
    b"-1\r\n", b"2\r\n{}x", b"1000\r\n" + b" " * 4096 + b"\r\n1\r\n \r\n0\r\n\r\n", b"0\r\nTrailer: " + b"y" * 9000,
    b"[" * 4096, b'{"name": "\xff"}', b" " * 4097,
)  # fmt: skip
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z ]*\r\n")


def run(data: bytes) -> None:
    """Let some connections send what ``data`` decides, to a controller of their own."""
    with tempfile.TemporaryDirectory(prefix="rc-fuzz-") as directory:
        asyncio.run(_run(Source(data), Path(directory)))


async def _run(source: Source, directory: Path) -> None:
    path = directory / "m.sock"
    async with fake_controller(directory / "data") as controller:
        app = create_app(controller, GuardSettings(TOKEN, max_body_bytes=_BODY_MAX, body_timeout_s=0.1))
        api = ApiServer(app, ApiSettings(path=path, max_connections=_CONNECTIONS_MAX, shutdown_grace_s=1))
        await api.start()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(api.stop)
            streams = stack.enter_context(contextlib.ExitStack())
            for _ in range(1 + source.number(1) % 6):
                reader, writer = await asyncio.open_unix_connection(path)
                streams.callback(writer.transport.abort)
                await speak(source, reader, writer)
                _look(api)
                await _check_sound(path)


async def speak(source: Source, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send what ``source`` decides, and look at what is answered."""
    stream = b"".join(_request(source) for _ in range(1 + source.number(1) % 3))
    reads = source.number(1) % 4 != 3
    with contextlib.suppress(ConnectionError):
        for piece in source.pieces(stream):
            writer.write(piece)
            await asyncio.sleep(0)
        if source.number(1) % 4 == 3:
            writer.write_eof()
    if reads:
        said = await _read(reader)
        statuses = [int(status) for status in _STATUS.findall(said)]
        assert not said or said.startswith(b"HTTP/1.1 "), said[:100]
        assert all(status < 500 or status in (503, 507) for status in statuses), said
        if _KNOWN not in stream:
            open_to_all = (100, 200) if b"/healthz" in stream or b"/openapi.json" in stream else (100,)
            assert all(status >= 400 or status in open_to_all for status in statuses), said


async def _read(reader: asyncio.StreamReader) -> bytes:
    """What is answered, until nothing more comes."""
    said = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while True:
            async with asyncio.timeout(_QUIET_S):
                more = await reader.read(1 << 16)
            if not more:
                return said
            said += more
    return said


def _look(api: ApiServer) -> None:
    """Connections and what is kept of their requests are bounded."""
    assert api._server is not None
    connections = api._server.server_state.connections
    assert len(connections) <= 2 * _CONNECTIONS_MAX
    for connection in connections:
        kept = len(connection.conn.trailing_data[0])  # type: ignore[union-attr]  # h11's is the only protocol here
        assert kept <= HEADER_BYTES_MAX + _READ_BYTES


async def _check_sound(path: Path) -> None:
    """A client that does as it should gets its answer."""
    async with asyncio.timeout(_SOUND_S):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + _KNOWN + b"\r\n\r\n")
        said = await reader.read()
        writer.close()
    assert said.startswith(b"HTTP/1.1 200 "), said[:200]


def _request(source: Source) -> bytes:
    if source.number(1) % 8 == 7:
        return source.take(source.number(1))
    space, end = (
        source.pick((b" ", b" ", b" ", b"  ", b"\t", b"")),
        source.pick((b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r")),
    )
    line = space.join((source.pick(_METHODS), source.pick(_PATHS), source.pick(_VERSIONS)))
    headers = [b"Host: x"] if source.number(1) % 8 != 7 else []
    headers += [source.pick(_HEADERS) for _ in range(source.number(1) % 5)]
    if source.number(1) % 16 == 15:
        headers += [b"X-%d: y" % number for number in range(2000)]
    content = bytearray(end.join((line, *headers)) + end + end + source.pick(_BODIES))
    if source.number(1) % 8 == 7:
        place = source.number(2) % len(content)
        content[place : place + 1] = source.take(2)
    return bytes(content)
