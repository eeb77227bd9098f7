"""The gate in front of every request: who is asking, and how much may be sent.

Owns: bearer-token authentication, the limit on request bodies, and the time a body may take.
Never: reads a body before the caller is known, or compares secrets in a way that takes time by content.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controllerd.management.errors import NO_TOKEN, TOO_LARGE, TOO_SLOW, HttpError, error_response

OPEN_PATHS: Final = frozenset({"/healthz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"})
"""Answered without a token: they say nothing about this controller but that it runs."""


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """``token`` is the secret itself; sizes in bytes, times in seconds."""

    token: str
    max_body_bytes: int = 1 << 20
    body_timeout_s: float = 10.0


class Guard:
    """ASGI middleware: refuses what is not allowed before the application sees it."""

    def __init__(self, app: ASGIApp, settings: GuardSettings) -> None:
        self._app = app
        self._settings = settings
        self._token = settings.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        try:
            if scope["path"] not in OPEN_PATHS:
                self._check_token(headers.get(b"authorization"))
            body = await self._read_body(headers, receive)
        except _Refused as refused:
            response = error_response(refused.error.status, refused.error.code, refused.text)
            response.headers["Connection"] = "close"  # the rest of the body is not wanted
            await response(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    def _check_token(self, header: bytes | None) -> None:
        if header is None:
            raise _Refused(NO_TOKEN, "give the controller's token: Authorization: Bearer TOKEN")
        scheme, _, token = header.partition(b" ")
        # Both are looked at in any case, so that the time taken tells nothing about either.
        if not hmac.compare_digest(token.strip(), self._token) & (scheme.lower() == b"bearer"):
            raise _Refused(NO_TOKEN, "this is not the token in the controller's management.token_file")

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body; None when the caller went away. Raises _Refused."""
        limit = self._settings.max_body_bytes
        declared = headers.get(b"content-length", b"0")
        too_large = _Refused(TOO_LARGE, f"a request body may have at most {limit} bytes")
        if len(declared) > 15 or int(declared) > limit:  # h11 lets only digits through
            raise too_large
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            text = f"the request body did not come within {self._settings.body_timeout_s:g} s"
            raise _Refused(TOO_SLOW, text) from None


class _Refused(Exception):
    def __init__(self, error: HttpError, text: str) -> None:
        super().__init__(text)
        self.error = error
        self.text = text


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive function that gives ``body`` once, then what the connection says."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
