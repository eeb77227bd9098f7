"""How an error looks over HTTP: status and body, decided here and nowhere else.

Owns: the table from error types to HTTP status, the handlers that use it, and its description for people.
Never: lets a caller see a traceback; what is unexpected is logged under an id that the caller is told.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from controllerd.management.schemas import ErrorAnswer
from controllerd.model.errors import (
    BadOrder,
    Busy,
    CallerError,
    Conflict,
    NoSpace,
    NotAuthorised,
    NotFound,
    PairError,
    ReadOnly,
    RemoteCopyError,
    RetryError,
    Unreachable,
)

_log = structlog.get_logger("management")

STATUS: Final[tuple[tuple[type[RemoteCopyError], int], ...]] = (
    (BadOrder, 400),
    (NotAuthorised, 403),
    (NotFound, 404),
    (Conflict, 409),
    (CallerError, 400),
    (Busy, 503),
    (Unreachable, 502),
    (RetryError, 503),
    (NoSpace, 507),
    (ReadOnly, 409),
    (PairError, 409),
    (RemoteCopyError, 500),
)
"""First match wins, so a class stands before its base. Storage faults of our own are 500."""


class HttpError(NamedTuple):
    """An error that is none of the controller's own, but of HTTP."""

    status: int
    code: str
    meaning: str


MALFORMED: Final = HttpError(400, "invalid-request", "The request cannot be understood.")
NO_TOKEN: Final = HttpError(401, "not-authorised", "The bearer token is missing or wrong.")
NO_PATH: Final = HttpError(404, "not-found", "There is no such path.")
NO_METHOD: Final = HttpError(405, "method-not-allowed", "The path takes other methods.")
TOO_SLOW: Final = HttpError(408, "timed-out", "The request body did not come in time.")
TOO_LARGE: Final = HttpError(413, "too-large", "The request body is longer than management.max_body_bytes.")
INVALID: Final = HttpError(422, "invalid-request", "A field of the request is unknown, missing or not possible.")
UNEXPECTED: Final = HttpError(500, "internal", "A defect of the controller; its log tells more.")
HTTP_ERRORS: Final = (MALFORMED, NO_TOKEN, NO_PATH, NO_METHOD, TOO_SLOW, TOO_LARGE, INVALID, UNEXPECTED)


def described() -> str:
    """Markdown: a table of every status and code that an error can have, and what it means."""
    rows = {(_status(kind), kind.code, (kind.__doc__ or "").splitlines()[0]) for kind in _kinds(RemoteCopyError)}
    lines = [f"| {status} | {code} | {meaning} |" for status, code, meaning in sorted(rows.union(HTTP_ERRORS))]
    return "\n".join(["| status | code | meaning |", "| --- | --- | --- |", *lines])


def _kinds(base: type[RemoteCopyError]) -> Iterator[type[RemoteCopyError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _status(kind: type[RemoteCopyError]) -> int:
    return next(status for base, status in STATUS if issubclass(kind, base))


def status_of(error: RemoteCopyError) -> int:
    """HTTP status for ``error``."""
    return _status(type(error))


def error_response(status: int, code: str, message: str, details: dict[str, Any] | None = None) -> JSONResponse:
    """The one shape of an error; ``details`` must be JSON values."""
    body = ErrorAnswer(code=code, message=message, details=details or {})
    headers = {"Retry-After": "1"} if status == 503 else {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body.model_dump(mode="json"), status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Make every error of ``app`` come out in that shape."""
    app.add_exception_handler(RemoteCopyError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RemoteCopyError)
    status = status_of(error)
    if status >= 500:
        _log.warning("order-failed", path=request.url.path, code=error.code, error=error.text)
    return error_response(status, error.code, _one_line(error.text), plain(error.facts))


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [_problem(item) for item in error.errors()]
    details = {"problems": [{"field": field, "message": message} for field, message in problems[:20]]}
    message = "; ".join(f"{field}: {text}" if field else text for field, text in problems[:5])
    return error_response(INVALID.status, INVALID.code, _one_line(message), details)


def _problem(item: Any) -> tuple[str, str]:
    location: Sequence[Any] = item.get("loc", ())
    field = ".".join(str(part) for part in location[1:])  # the first part says "body", "query" or "path"
    context = item.get("ctx", {})
    message = str(context["error"]) if item.get("type") == "value_error" and "error" in context else str(item["msg"])
    if item.get("type") == "extra_forbidden":
        message = "unknown field"
    return field, message


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {known.status: known.code for known in (MALFORMED, NO_PATH, NO_METHOD)}
    message = "no such path; the paths are listed at /openapi.json" if error.status_code == 404 else str(error.detail)
    return error_response(error.status_code, codes.get(error.status_code, MALFORMED.code), _one_line(message))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    incident = secrets.token_hex(4)
    _log.error("unexpected-error", incident=incident, path=request.url.path, exc_info=error)
    message = f"unexpected error; the controller's log tells more under {incident}"
    return error_response(UNEXPECTED.status, UNEXPECTED.code, message)


def plain(value: Any, depth: int = 4) -> Any:
    """``value`` as JSON values: facts of an error may hold anything."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth and isinstance(value, dict):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth - 1) for item in value]
    return str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:2000]
