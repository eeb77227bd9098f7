"""Structured logs: one line per event that an operator cares about, on standard error.

Owns: the set-up of structlog, and of the standard library's logging that uvicorn and asyncio use; how bad an event is.
Never: decides what is logged; every module gets its own logger with ``structlog.get_logger(NAME)``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "text"]

_ERRORS: Final = ("-failed", "-error", "-lost", "-suspended")
_WARNINGS: Final = ("-damaged", "-diverged", "-full", "-stalled", "-stopped")


def severity(event: str, facts: Mapping[str, Any]) -> int:
    """The level at which ``event`` is logged: its name says it, or an ``error`` or ``fault`` among its facts."""
    if event.endswith(_ERRORS) or facts.get("error") or facts.get("fault"):
        return logging.ERROR
    return logging.WARNING if event.endswith(_WARNINGS) else logging.INFO


def configure_logging(level: Level, form: Format, *, controller: str, stream: TextIO | None = None) -> None:
    """Send events of at least ``level`` to ``stream`` (default: standard error) as JSON or text.

    ``auto`` is text on a terminal, else JSON. Every line carries ``controller``, so that lines of several daemons
    can be told apart in one collector. May be called again; the last call counts.
    """
    out = stream if stream is not None else sys.stderr
    text = form == "text" or (form == "auto" and out.isatty())

    def add_controller(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("controller", controller)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_controller,
    ]
    ending: list[Processor]
    if text:
        ending = [structlog.dev.ConsoleRenderer(colors=out.isatty())]
    else:
        ending = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Not events of ours: who connects to the HTTP port, and how uvicorn starts and stops.
    for chatty in ("uvicorn.access", "uvicorn.error", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
