"""HTTP client of one controller: orders out, schemas in, errors as `CliError`.

Owns: connections, timeouts, and what an answer means.
Never: prints, sends an order twice, or knows its options.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from concurrent.futures import Future
from functools import cached_property
from types import TracebackType
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from controllerd.management.schemas import ErrorAnswer
from mgmtctl.errors import CliError, ExitCode, exit_code_for, usage_error
from mgmtctl.settings import Endpoint, read_token

CONNECT_TIMEOUT_S: Final = 5.0
CONNECT_POLL_S: Final = 0.1
ANSWER_BYTES_MAX: Final = 64 << 20
"""Longest answer that is read; the longest one of a controller are its metrics, with a few MiB."""
_Answer = TypeVar("_Answer")


class Client:
    """Talks to one controller. ``timeout_s`` bounds the wait for each answer. Use as a context manager.

    ``wait_s``: how long to try again when there is no connection, from now on.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float, wait_s: float = 0.0) -> None:
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._waits_until = time.monotonic() + wait_s
        url, transport = endpoint.url, None
        if url.startswith("unix:"):
            transport, url = httpx.HTTPTransport(uds=url.removeprefix("unix:")), "http://controller"
        try:
            self._http = httpx.Client(
                base_url=url,
                timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
                transport=transport,
                verify=_trust(endpoint),
                trust_env=False,  # a proxy meant for the web, or .netrc, has no business here
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise usage_error(f"controller {endpoint.name}: {endpoint.url}: {error}") from None

    @cached_property
    def _authorization(self) -> dict[str, str]:
        token = read_token(self.endpoint)
        if not all("!" <= character <= "~" for character in token):
            raise usage_error(f"the token of controller {self.endpoint.name} has characters that cannot be sent")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, answer: type[_Answer], **query: str | None) -> _Answer:
        """GET ``path``; raises CliError."""
        return self._order("GET", path, answer, None, query)

    def post(self, path: str, body: BaseModel | None, answer: type[_Answer], **query: str | None) -> _Answer:
        """POST ``body``; raises CliError."""
        return self._order("POST", path, answer, body, query)

    def create(self, path: str, body: BaseModel, answer: type[_Answer]) -> tuple[_Answer, bool]:
        """POST an idempotent order; also whether what it makes is new. Raises CliError."""
        response = self._send("POST", path, body, {})
        return self._parse(response, path, answer), response.status_code == 201

    def patch(self, path: str, body: BaseModel, answer: type[_Answer]) -> _Answer:
        """PATCH with ``body``; raises CliError."""
        return self._order("PATCH", path, answer, body, {})

    def put(self, path: str, body: BaseModel, answer: type[_Answer]) -> _Answer:
        """PUT ``body``; raises CliError."""
        return self._order("PUT", path, answer, body, {})

    def delete(self, path: str, answer: type[_Answer], **query: str | None) -> _Answer:
        """DELETE ``path``; raises CliError."""
        return self._order("DELETE", path, answer, None, query)

    def text(self, path: str) -> str:
        """GET something that is not JSON."""
        return self._send("GET", path, None, {}).text

    def _order(
        self, method: str, path: str, answer: type[_Answer], body: BaseModel | None, query: dict[str, str | None]
    ) -> _Answer:
        return self._parse(self._send(method, path, body, query), path, answer)

    def _parse(self, response: httpx.Response, path: str, answer: type[_Answer]) -> _Answer:
        try:
            return TypeAdapter(answer).validate_json(response.content)
        except ValidationError:
            raise self._error(f"answered {path} in a form this mgmtctl does not understand", ExitCode.REFUSED) from None

    def _send(self, method: str, path: str, body: BaseModel | None, query: dict[str, str | None]) -> httpx.Response:
        # Only what was set goes out, so that the controller's own defaults stand.
        content = None if body is None else body.model_dump_json(exclude_unset=True).encode()
        request = self._http.build_request(
            method,
            path,
            params={key: value for key, value in query.items() if value is not None},
            content=content,
            headers=self._authorization | ({} if content is None else {"Content-Type": "application/json"}),
        )
        try:
            response = self._connected(request)
        except httpx.ConnectTimeout:
            raise self._error("does not answer", ExitCode.UNREACHABLE) from None
        except httpx.TimeoutException:
            text = f"did not answer within {self._timeout_s:g} s; the order may still be under way"
            raise self._error(text, ExitCode.TIMED_OUT) from None
        except httpx.HTTPError as error:
            raise self._error(f"does not answer ({str(error) or type(error).__name__})", ExitCode.UNREACHABLE) from None
        if response.is_success:
            return response
        raise self._refusal(response)

    def _connected(self, request: httpx.Request) -> httpx.Response:
        """The answer; what could not be sent because nobody listens is tried again for as long as was asked for."""
        while True:
            try:
                return self._in_time(request)
            except httpx.ConnectError:
                if time.monotonic() >= self._waits_until:
                    raise
            time.sleep(CONNECT_POLL_S)

    def _in_time(self, request: httpx.Request) -> httpx.Response:
        """The answer within the time for all of it: httpx bounds each read, and there is no end of how many."""
        answer: Future[httpx.Response] = Future()

        def work() -> None:
            try:
                answer.set_result(self._exchange(request))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=work, name="answer", daemon=True).start()
        try:
            return answer.result(self._timeout_s + min(CONNECT_TIMEOUT_S, self._timeout_s))
        except TimeoutError:
            raise httpx.ReadTimeout("the answer goes on and on") from None

    def _exchange(self, request: httpx.Request) -> httpx.Response:
        response = self._http.send(request, stream=True)
        try:
            content = bytearray()
            for piece in response.iter_raw():  # as it came: a controller compresses nothing
                content += piece
                if len(content) > ANSWER_BYTES_MAX:
                    text = f"gives an answer of more than {ANSWER_BYTES_MAX >> 20} MiB"
                    raise self._error(text, ExitCode.REFUSED)
            return httpx.Response(response.status_code, content=bytes(content))
        finally:
            response.close()

    def _refusal(self, response: httpx.Response) -> CliError:
        status = exit_code_for(response.status_code)
        try:
            answer = ErrorAnswer.model_validate_json(response.content)
        except ValidationError:
            text = " ".join(response.text.split())[:200]
            return self._error(f"answered {response.status_code} {text}".rstrip(), status)
        return CliError(f"{self.endpoint.name}: {answer.message}", status, code=answer.code, details=answer.details)

    def _error(self, text: str, exit_code: ExitCode) -> CliError:
        return CliError(f"controller {self.endpoint.name} ({self.endpoint.url}) {text}", exit_code)


def _trust(endpoint: Endpoint) -> ssl.SSLContext | bool:
    if endpoint.ca is None:
        return True if endpoint.url.startswith("https:") else False  # noqa: SIM210 - loading authorities costs 30 ms
    try:
        return ssl.create_default_context(cafile=str(endpoint.ca))
    except (OSError, ssl.SSLError) as error:
        raise usage_error(f"ca of controller {endpoint.name}: {endpoint.ca}: {error}") from None


def as_json(value: Any) -> str:
    """Answers as the text that --json prints: two spaces, keys in the order of the schema."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif isinstance(value, list):
        value = [item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in value]
    return json.dumps(value, indent=2, ensure_ascii=False)
