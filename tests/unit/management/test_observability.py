from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from controllerd.management.observability import Format, Level, configure_logging, severity


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(level: Level, form: Format) -> list[str]:
    stream = io.StringIO()
    configure_logging(level, form, controller="A", stream=stream)
    log = structlog.get_logger("storage")
    log.debug("too-detailed")
    log.info("group-recovered", group="g1", records=3, odd=object)
    logging.getLogger("asyncio").error("of the library")
    logging.getLogger("uvicorn.error").info("Started server process")
    try:
        raise ValueError("inside\nand more")
    except ValueError:
        log.exception("unexpected-error", incident="ab")
    return stream.getvalue().splitlines()


def test_json_has_one_object_per_event() -> None:
    events = [json.loads(line) for line in lines("info", "json")]
    assert [event["event"] for event in events] == ["group-recovered", "of the library", "unexpected-error"]
    assert events[0]["records"] == 3
    assert {event["controller"] for event in events} == {"A"}
    assert [event["level"] for event in events] == ["info", "error", "error"]
    assert "ValueError" in events[2]["exception"]
    assert all(event["timestamp"].endswith("Z") for event in events)


def test_text_is_for_people() -> None:
    found = lines("warning", "text")
    assert not any("group-recovered" in line for line in found)
    assert "of the library" in found[0]


def test_auto_is_json_where_nobody_looks() -> None:
    assert json.loads(lines("info", "auto")[0])["group"] == "g1"


@pytest.mark.parametrize(
    ("event", "facts", "level"),
    [
        ("started", {"serial": 1}, "INFO"),
        ("group-recovered", {"group": "g", "fault": None}, "INFO"),
        ("group-recovered", {"group": "g", "fault": "journal damaged"}, "ERROR"),
        ("checkpoint-failed", {"error": "disk full"}, "ERROR"),
        ("replication-timer-error", {"error": "DiskFailed"}, "ERROR"),
        ("stop-without-checkpoint", {"error": "disk full"}, "ERROR"),
        ("transfer-damaged", {"peer": "B"}, "WARNING"),
        ("pool-full", {"pool": "p"}, "WARNING"),
    ],
)
def test_trouble_is_never_logged_as_information(event: str, facts: dict[str, Any], level: str) -> None:
    assert logging.getLevelName(severity(event, facts)) == level
