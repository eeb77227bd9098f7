"""Who gets in, and how much may be sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.unit.management.fake_controller import TOKEN

WRONG = [
    None,
    "",
    TOKEN,
    f"Basic {TOKEN}",
    "Bearer",
    "Bearer ",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    f"Bearer {TOKEN.upper()}",
    "Bearer \xff\xfe",
]


@pytest.mark.parametrize("header", WRONG)
@pytest.mark.parametrize("path", ["/v1/system", "/metrics", "/v1/nothing", "/"])
async def test_server_refuses_without_the_right_token(api: httpx.AsyncClient, header: str | None, path: str) -> None:
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    del api.headers["Authorization"]
    answer = await api.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["code"] == "not-authorised"
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert TOKEN not in answer.text


async def test_scheme_is_not_case_sensitive(api: httpx.AsyncClient) -> None:
    assert (await api.get("/v1/system", headers={"Authorization": f"bearer {TOKEN}"})).status_code == 200


async def test_health_needs_no_token_and_tells_nothing(api: httpx.AsyncClient) -> None:
    del api.headers["Authorization"]
    answer = await api.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_server_rejects_a_body_that_is_declared_too_long(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/groups", content=b"x" * 4097)
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


async def test_server_rejects_a_body_that_turns_out_too_long(api: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    answer = await api.post("/v1/groups", content=chunks())
    assert answer.status_code == 413


async def test_server_gives_up_on_a_body_that_does_not_come(api: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)
        yield b"}"

    answer = await api.post("/v1/groups", content=chunks())
    assert (answer.status_code, answer.json()["code"]) == (408, "timed-out")


async def test_body_is_not_read_before_the_token_is_checked(api: httpx.AsyncClient) -> None:
    read = False

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b"{}"

    del api.headers["Authorization"]
    assert (await api.post("/v1/groups", content=chunks())).status_code == 401
    assert not read
