"""Any requests, with or without the token: each is answered as documented, and the next one is served (I17)."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any, Final

import httpx

from controllerd.management.app import create_app
from controllerd.management.guard import GuardSettings
from controllerd.management.schemas import ErrorAnswer
from tests.fuzz.source import Source
from tests.unit.management.fake_controller import TOKEN, fake_controller

_BODY_MAX: Final = 4096
_PATHS: Final = (
    "disks", "pools", "groups", "volumes", "pairs", "volumes/{}", "groups/{}", "pairs/{}", "pairs/{}/suspend",
    "volumes/{}/sessions/{}", "takeover", "takeover?domain={}", "status", "{}",
)  # fmt: skip
_METHODS: Final = ("POST", "GET", "PATCH", "DELETE", "PUT")
_NAMES: Final = ("g1", "v", "%2e%2e", "a%2Fb", "%00", "x" * 80, "a?role=other", "%ff", "-1", "9" * 30, "%F0%9F%98%80")
_FIELDS: Final = (
    "name", "size", "pool", "group", "disks", "role", "peer", "peer_group", "volumes", "mode", "domain", "path",
    "block_size", "durability", "region_size", "journal_bytes", "erase", "sync_timeout_s", "primary", "secondary",
    "key",
)  # fmt: skip
_VALUES: Final = (
    '"g1"', '"p"', '"d"', '"v"', "1048576", "0", "-1", "true", "null", '""', '".."', '"a/b"', '"\\u0000"', '"\\ud800"',
    '"\\ud83d\\ude00"', '"' + "x" * 300 + '"', "1e999", "NaN", "9" * 400, "1.5", "[]", "{}", "[" * 1500, '["d"]',
    '"4MiB"', '"primary"', '"async"', '[{"primary": "v", "secondary": "v", "key": 1, "size": 4096}]',
    '"18446744073709551616"',
)  # fmt: skip


def run(data: bytes) -> None:
    """Make the requests that ``data`` decides, to a controller of their own."""
    with tempfile.TemporaryDirectory(prefix="rc-fuzz-") as directory:
        asyncio.run(_run(Source(data), Path(directory)))


async def _run(source: Source, directory: Path) -> None:
    async with fake_controller(directory / "data") as controller:
        app = create_app(controller, GuardSettings(TOKEN, max_body_bytes=_BODY_MAX, body_timeout_s=0.2))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            for _ in range(1 + source.number(1) % 8):
                await _request(source, client)
                sound = await client.get("/v1/status", headers={"Authorization": f"Bearer {TOKEN}"})
                assert sound.status_code == 200, sound.text
        # Nothing is made outside the place where data belongs.
        assert [path.name for path in directory.iterdir()] == ["data"]


async def _request(source: Source, client: httpx.AsyncClient) -> None:
    method = source.pick(_METHODS)
    path = source.pick(_PATHS)
    while "{}" in path:
        path = path.replace("{}", source.pick(_NAMES), 1)
    headers = {
        "Authorization": source.pick((f"Bearer {TOKEN}", f"Bearer {TOKEN}", f"Bearer {TOKEN}", "Bearer x", "")),
        "Content-Type": source.pick(("application/json", "application/json", "text/plain", "")),
    }
    known = headers["Authorization"].endswith(TOKEN)
    answer = await client.request(method, f"/v1/{path}", content=_body(source), headers=headers)
    assert answer.status_code < 500 or answer.status_code == 507, (method, path, answer.text)
    assert known or answer.status_code in (401, 413), (method, path, answer.text)
    if answer.status_code >= 400:
        assert "\n" not in ErrorAnswer.model_validate_json(answer.content).message


def _body(source: Source) -> bytes:
    match source.number(1) % 8:
        case 0:
            return source.take(source.number(1))
        case 1:
            return b" " * source.pick((_BODY_MAX, _BODY_MAX + 1, 100_000))
        case 2:
            order: dict[str, Any] = source.pick((
                {"name": "d", "size": 8 << 20}, {"name": "p", "disks": ["d"]}, {"name": "g1"},
                {"name": "v", "size": 1 << 20, "pool": "p", "group": "g1"},
            ))  # fmt: skip
            return json.dumps(order).encode()
        case _:
            fields = [f'"{source.pick(_FIELDS)}": {source.pick(_VALUES)}' for _ in range(source.number(1) % 7)]
            body = bytearray("{" + ", ".join(fields) + "}", "utf-8")
            if source.number(1) % 4 == 3:
                place = source.number(1) % len(body)
                body[place : place + 1] = source.take(2)
            return bytes(body)
