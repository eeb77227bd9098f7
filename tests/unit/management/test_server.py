"""The management port itself: start and stop in a foreign loop, and what bad clients can do to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from controllerd.management import server as server_module
from controllerd.management.app import create_app
from controllerd.management.guard import GuardSettings
from controllerd.management.server import ApiServer, ApiSettings
from controllerd.model.errors import NotFound
from tests.unit.management.fake_controller import TOKEN, FakeController

Start = Callable[..., Awaitable[ApiServer]]


@pytest.fixture
async def start(controller: FakeController) -> AsyncIterator[Start]:
    running: list[ApiServer] = []

    async def run(**settings: Any) -> ApiServer:
        api = ApiServer(create_app(controller, GuardSettings(TOKEN)), ApiSettings(**settings))
        await api.start()
        running.append(api)
        return api

    yield run
    for api in running:
        await api.stop()


def port_of(api: ApiServer) -> int:
    return int(api.address.rpartition(":")[2])


@asynccontextmanager
async def connected(api: ApiServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(api))
    try:
        yield reader, writer
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Everything up to the end of the connection."""
    try:
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        return b""


async def test_serves_in_the_callers_loop_and_stops(start: Start) -> None:
    api = await start()
    async with httpx.AsyncClient(base_url=api.address) as client:
        assert (await client.get("/healthz")).status_code == 200
    await api.stop()
    await api.stop()
    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection("127.0.0.1", port_of(api))


async def test_listens_on_a_unix_socket_that_only_its_user_may_use(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    api = await start(path=path)
    assert path.stat().st_mode & 0o777 == 0o600
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
        assert (await client.get("http://controller/healthz")).status_code == 200
    await api.stop()
    assert not path.exists()


async def test_address_in_use_is_a_clear_error(start: Start, tmp_path: Path) -> None:
    api = await start()
    with pytest.raises(OSError, match=rf"management\.listen: 127\.0\.0\.1:{port_of(api)}: Address already in use"):
        await start(port=port_of(api))
    await start(path=tmp_path / "m.sock")
    with pytest.raises(OSError, match="another process listens there"):
        await start(path=tmp_path / "m.sock")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"management\.listen: unix:"):
        await start(path=tmp_path / "file")
    with pytest.raises(OSError, match=r"management\.listen: no\.such\.host\.invalid:0"):
        await start(host="no.such.host.invalid")


async def test_signal_handlers_stay_the_daemons(start: Start) -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    await start()
    assert signal.getsignal(signal.SIGTERM) is before


async def test_server_closes_a_client_that_never_finishes_its_header(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT_S", 0.2)
    api = await start()
    async with connected(api) as (silent, _), connected(api) as (slow, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost:")
        assert await closed(silent) == await closed(slow) == b""


async def test_server_closes_a_client_that_is_slow_with_its_second_request(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT_S", 0.2)
    api = await start()
    async with connected(api) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"}")
        writer.write(b"GET /he")
        assert await closed(reader) == b""


async def test_slow_answer_is_not_taken_for_a_slow_request(
    start: Start, controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT_S", 0.05)
    original = controller.pairs.preview

    async def slow(domain: str) -> Any:
        await asyncio.sleep(0.3)
        return await original(domain)

    controller.pairs.preview = slow  # type: ignore[method-assign]
    api = await start()
    async with httpx.AsyncClient(base_url=api.address, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        assert (await client.get("/v1/takeover")).status_code == 404


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\xff" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (1 << 20),
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n",
        b"POST /v1/groups HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/groups HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/groups HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        random.Random(3).randbytes(4096),
    ],
    ids=["binary", "version", "header", "path", "negative", "huge", "chunk", "upgrade", "http2", "random"],
)
async def test_any_bytes_get_an_answer_or_a_closed_connection(start: Start, content: bytes) -> None:
    api = await start()
    async with connected(api) as (reader, writer):
        try:
            writer.write(content)
            await writer.drain()
            writer.write_eof()
        except OSError:
            pass
        said = await closed(reader)
        assert said == b"" or said.startswith(b"HTTP/1.1 ")
    async with httpx.AsyncClient(base_url=api.address) as client:
        assert (await client.get("/healthz")).status_code == 200, "others are not affected"


_HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def test_too_many_requests_at_once_are_refused_not_queued(start: Start, controller: FakeController) -> None:
    release = asyncio.Event()

    async def slow(_domain: str) -> Any:
        await release.wait()
        raise NotFound("nobody waits for this")

    controller.pairs.preview = slow  # type: ignore[method-assign,assignment]
    api = await start(max_connections=3)  # uvicorn serves one less
    order = f"GET /v1/takeover HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            _, writer = await stack.enter_async_context(connected(api))
            writer.write(order)
        await asyncio.sleep(0.1)
        reader, writer = await stack.enter_async_context(connected(api))
        writer.write(_HEALTH)
        assert b"503" in await closed(reader)
        release.set()


@pytest.mark.parametrize("half", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_connections_without_a_request_make_room_for_those_with_one(start: Start, half: bytes) -> None:
    api = await start(max_connections=4)
    async with contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(connected(api)) for _ in range(20)]
        for _, writer in silent:
            writer.write(half)
        await asyncio.sleep(0.1)
        for _ in range(3):
            async with connected(api) as (reader, writer):
                writer.write(_HEALTH)
                assert b"200 OK" in await closed(reader)


@pytest.mark.parametrize("timeout_s", [0.2, 30.0], ids=["closed in time", "make room"])
async def test_clients_that_take_no_answers_do_not_keep_others_out(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    """No token is needed for the description of the API, and it is long."""
    monkeypatch.setattr(server_module, "ANSWER_TIMEOUT_S", timeout_s)
    path = str(tmp_path / "m.sock")
    await start(path=Path(path), max_connections=4)
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]  # uvicorn serves one less
        for sock in greedy:
            sock.setblocking(False)
            await loop.sock_connect(sock, path)
        for _ in range(12):  # more than the sockets take
            for sock in greedy:
                with contextlib.suppress(OSError):
                    await loop.sock_sendall(sock, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(0.05)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(_HEALTH)
        assert b"200 OK" in await closed(reader)
        writer.close()


async def test_stop_waits_for_the_order_under_way(start: Start, controller: FakeController) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def slow(_domain: str) -> Any:
        started.set()
        await release.wait()
        return {"domain": "default", "preview": False, "cut_time": 1, "unknown_since": 1, "unknown_s": 0, "groups": []}

    controller.pairs.takeover = slow  # type: ignore[assignment,method-assign]
    api = await start()
    async with httpx.AsyncClient(base_url=api.address, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        order = asyncio.create_task(client.post("/v1/takeover", json={}))
        await started.wait()
        stopping = asyncio.create_task(api.stop())
        release.set()
        answer = await order
        await stopping
    assert json.loads(answer.content)["cut_time"] == 1


async def test_stop_waits_for_an_order_whose_caller_has_gone(start: Start, controller: FakeController) -> None:
    started, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_domain: str) -> Any:
        started.set()
        await release.wait()
        ended.set()
        raise NotFound("nobody hears this")

    controller.pairs.takeover = slow  # type: ignore[assignment,method-assign]
    api = await start()
    body = b"POST /v1/takeover HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Type: application/json\r\n"
    async with connected(api) as (_, writer):
        writer.write(body + f"Authorization: Bearer {TOKEN}\r\n\r\n".encode() + b"{}")
        await started.wait()
    stopping = asyncio.create_task(api.stop())
    done, _ = await asyncio.wait({stopping}, timeout=0.5)
    assert not done
    release.set()
    await stopping
    assert ended.is_set()
