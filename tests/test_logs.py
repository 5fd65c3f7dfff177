"""A log line stays one line: no value can end it or control a terminal."""

import logging

import pytest
import structlog

from worker_scheduler import logs


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> structlog.stdlib.BoundLogger:
    """A logger of ours, and the level at which caplog sees it."""
    logs.configure("INFO")
    caplog.set_level(logging.INFO, "worker_scheduler")
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("worker_scheduler.test")
    return logger


@pytest.mark.parametrize(
    "hostile",
    ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\x9b31mb", "a\u2028b", "a\u202eb", "a\x00b", "50% {} %s"],
)
def test_no_value_breaks_the_line(
    hostile: str, log: structlog.stdlib.BoundLogger, caplog: pytest.LogCaptureFixture
) -> None:
    log.info("seen", login=hostile)
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith("event=seen login=")
    assert line.isprintable()
    assert len(line.splitlines()) == 1


def test_a_traceback_is_escaped_once_and_without_passwords(
    log: structlog.stdlib.BoundLogger, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        raise RuntimeError("redis://:hunter2@h/0\nis away")
    except RuntimeError as error:
        log.warning("job failed", exc_info=error)
    (record,) = caplog.records
    line = record.getMessage()
    assert len(line.splitlines()) == 1
    assert r"RuntimeError: redis://***@h/0\nis away" in line
    assert r"Traceback (most recent call last):\n  File \"" in line
    assert "hunter2" not in line
