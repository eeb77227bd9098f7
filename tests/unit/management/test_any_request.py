"""Whatever is sent to any route, the answer is the documented one: done, or an error in the one shape (I17)."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx

from controllerd.management.schemas import ErrorAnswer

SEED = 20261121
ROUTES = [
    ("POST", "/v1/disks"), ("POST", "/v1/pools"), ("POST", "/v1/groups"), ("POST", "/v1/volumes"),
    ("PATCH", "/v1/volumes/{}"), ("DELETE", "/v1/volumes/{}"), ("GET", "/v1/volumes/{}"), ("GET", "/v1/groups/{}"),
    ("DELETE", "/v1/groups/{}"), ("POST", "/v1/pairs"), ("GET", "/v1/pairs/{}"), ("DELETE", "/v1/pairs/{}"),
    ("POST", "/v1/pairs/{}/suspend"), ("GET", "/v1/takeover?domain={}"), ("POST", "/v1/takeover"),
]  # fmt: skip
FIELDS = [
    "name", "size", "pool", "group", "disks", "role", "peer", "peer_group", "volumes", "mode", "domain", "path",
    "block_size", "durability", "region_size", "journal_bytes", "erase", "sync_timeout_s",
]  # fmt: skip
TEXTS = ["g1", "p", "d1", "", "..", "a/b", "%00", "é", "x" * 70, "primary", "async", "4MiB", "-1", "\x00", "\n"]


def value(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [value(rng, depth - 1) for _ in range(rng.randrange(3))]
    if kind == 7:
        return {rng.choice(FIELDS): value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return rng.choice(
        [None, True, rng.randrange(-5, 1 << 70), rng.random() * 1e30, rng.choice(TEXTS), rng.choice(TEXTS)]
    )


async def test_any_request_is_answered_as_documented(api: httpx.AsyncClient) -> None:
    rng = random.Random(SEED)
    for number in range(600):
        method, path = rng.choice(ROUTES)
        path = path.replace("{}", rng.choice(["g1", "v", "%2e%2e", "a%2Fb", "%00", "x" * 80, "a?role=other"]))
        body = {field: value(rng) for field in rng.sample(FIELDS, rng.randrange(7))}
        if rng.random() < 0.3:
            body = {"name": f"n{number}", "size": rng.randrange(1 << 64), "pool": "p", "group": "g1"}
        content = json.dumps(body).encode()
        if rng.random() < 0.2:
            cut = rng.randrange(len(content) + 1)
            content = content[:cut] + rng.randbytes(2) + content[cut:]
        answer = await api.request(method, path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500 or answer.status_code == 507, (SEED, number, method, path, body, answer.text)
        if answer.status_code >= 400:
            assert "\n" not in ErrorAnswer.model_validate_json(answer.content).message
