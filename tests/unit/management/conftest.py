from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from controllerd.management.app import create_app
from controllerd.management.guard import GuardSettings
from tests.unit.management.fake_controller import TOKEN, FakeController, fake_controller


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[FakeController]:
    async with fake_controller(tmp_path / "data") as it:
        yield it


@pytest.fixture
async def api(controller: FakeController) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(controller, GuardSettings(TOKEN, max_body_bytes=4096, body_timeout_s=0.2))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
        yield client
