"""Celery's own lines, which contain what strangers put into messages: one line each, of bounded length."""

import json
import logging
import re
from pathlib import Path
from uuid import uuid4

import pytest
from celery.utils.log import ColorFormatter
from redis import Redis

from tests.intake.malformed import changed
from tests.support.messages import Broker
from tests.support.processes import started, worker_of
from tests.support.waiting import wait_until
from worker_scheduler.logs import MAX_LINE, OneLine, one_line

HOSTILE = "x\n\x1b[2J\x9b31m\u2028\u202e" + "y" * 100
LONGEST = MAX_LINE + 500


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("celery", logging.ERROR, "file", 1, message, arguments, info)


def test_messages_and_exceptions_are_one_bounded_line() -> None:
    for text in (HOSTILE, HOSTILE * 20_000, "\x1b" * 1_000_000, "a." * 500_000):
        line = OneLine(logging.Formatter("%(message)s")).format(
            record("Task %s raised", text, error=RuntimeError(text))
        )
        assert line.isprintable()
        assert len(line) < LONGEST


def test_a_long_exception_keeps_its_end() -> None:
    line = OneLine(None).format(record("failed", error=RuntimeError("x" * 1_000_000 + " the end")))
    assert line.startswith("failed")
    assert line.endswith(" the end")


def test_no_password_is_left_over_where_a_line_is_cut() -> None:
    url, long = " https://user:s3cr3ts3cr3t@host/ ", "y" * 1_000_000
    for offset in range(0, 60, 3):
        filled = "x " * (MAX_LINE // 4 - offset)
        assert "s3cr3t" not in one_line(filled + url + long)
        assert "s3cr3t" not in one_line(long + url + filled)


def test_colours_stay() -> None:
    coloured = ColorFormatter("%(message)s", use_color=True)
    line = OneLine(coloured).format(record("a\nb"))
    assert line.startswith("\x1b[")
    assert r"a\nb" in line


def test_a_good_line_is_left_as_it_is() -> None:
    assert one_line(r'event="x" path=C:\temp') == r'event="x" path=C:\temp'


@pytest.mark.usefixtures("ledger")
def test_a_worker_writes_one_line_per_event(
    environment: dict[str, str], broker: Broker, tmp_path: Path
) -> None:
    environment |= {
        "SYNC_HANDLER": "tests.support.handlers:complete",
        "HANDLER_FOLDER": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    messages = [
        changed("daily", "headers", "id", value="id\n\x1b[2J"),
        changed("daily", "headers", "shadow", value=HOSTILE),
        changed("daily", "headers", "shadow", value="z" * 1_000_000),
        changed("daily", "headers", "task", value=HOSTILE),
        changed("daily", "headers", "argsrepr", value=HOSTILE * 1000),
        changed("daily", "body", value=json.dumps([["x" * 1_000_000, 5, HOSTILE], {}, {}])),
        changed("daily", "headers", "origin", value=HOSTILE),
    ]
    unknown = changed("daily", "headers", "task", value="scheduler.backfill")
    unknown["body"] = json.dumps([[], {HOSTILE: HOSTILE * 10_000}, {}])
    last = changed("daily", "headers", "id", value=str(uuid4()))
    with started(worker_of(environment, tmp_path / "log", "daily")) as worker:
        worker.wait_for_log("ready.")
        before = len(worker.log())
        with Redis.from_url(broker.url) as redis:
            for message in [*messages, unknown, last]:
                redis.lpush(f"{broker.key_prefix}daily", json.dumps(message))
        name = f"sync_user[{last['headers']['id']}] succeeded"
        wait_until(lambda: name in worker.log(), 30, "the last message")
        lines = worker.log()[before:].split("\n")[:-1]
    assert all(re.match(r"\[\d{4}-\d\d-\d\d ", line) for line in lines), lines
    assert all(line.isprintable() and len(line) < LONGEST + 200 for line in lines)
