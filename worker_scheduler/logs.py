"""Logging: one event, one line of key=value, on stderr. In a worker or Beat, Celery owns the handler."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

from worker_scheduler.redaction import escape_control_characters, mask_passwords


def configure(level: str) -> None:
    """Sets up structlog over the standard library, for this process. level: of our own loggers."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            _safe_values,
            structlog.processors.LogfmtRenderer(key_order=["event"], bool_as_flag=False),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    logging.getLogger("worker_scheduler").setLevel(level)


def to_stderr() -> None:
    """Gives the root logger a handler; for commands, which have no Celery to do it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z")
    )
    logging.getLogger().handlers = [handler]


def _safe_values(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """No value drives a terminal or shows a password. The ends of lines are left to LogfmtRenderer,
    which would escape our escapes anew.
    """
    return {
        key: "\n".join(map(escape_control_characters, mask_passwords(value).split("\n")))
        if isinstance(value, str)
        else value
        for key, value in event.items()
    }
