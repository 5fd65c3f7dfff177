"""Logging: one event, one line of key=value, on stderr. In a worker and in Beat the handler is Celery's."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from worker_scheduler.redaction import escape_control_characters, mask_passwords

MAX_LINE = 8000
"""Characters of a line. A longer one keeps its beginning and its end, where exceptions say their text."""
_CUT = " [...] "
_MARGIN = 1000
"""A secret of up to so many characters is masked also where a text is cut."""


class OneLine(logging.Formatter):
    """Makes each record one line of bounded length, exceptions too, whichever code logs it.

    inner: the formatter that says how a line looks; its colours are kept.
    """

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()
        self._colours: dict[str, Callable[[str], Any]] = {}
        if getattr(self._inner, "use_color", False):
            self._colours = getattr(self._inner, "colors", {})
            self._inner.use_color = False  # type: ignore[attr-defined] # Celery's ColorFormatter

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        line = one_line(self._inner.format(record))
        colour = self._colours.get(record.levelname)
        return line if colour is None else str(colour(line))


def one_line(text: str) -> str:
    """The text without passwords and control characters; a long one is cut in the middle."""
    return _cut(escape_control_characters(_masked(text)))


def _masked(text: str) -> str:
    """The text without passwords; only the two ends of a long one, since masking takes its time."""
    if len(text) <= MAX_LINE:
        return mask_passwords(text)
    half = MAX_LINE // 2
    beginning = mask_passwords(text[: half + _MARGIN])[:half]
    return f"{beginning}{_CUT}{mask_passwords(text[-half - _MARGIN :])[-half:]}"


def _cut(text: str) -> str:
    half = MAX_LINE // 2
    return text if len(text) <= MAX_LINE + len(_CUT) else f"{text[:half]}{_CUT}{text[-half:]}"


def keep_to_one_line(logger: logging.Logger) -> None:
    """Makes the handlers of a logger write lines of this form."""
    for handler in logger.handlers:
        if not isinstance(handler.formatter, OneLine):
            handler.setFormatter(OneLine(handler.formatter))


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger of this package: one event is one line of the logger `name` of the standard library.

    In another code base's process that has configured structlog, our lines look like its own; nowhere else.
    structlog's default would print them to stdout, with the local variables of every frame.
    """
    return cast(structlog.stdlib.BoundLogger, _Logger(name))


def configure(level: str) -> None:
    """Fixes the form of our lines in this process: a handler that configures structlog does not change it.

    level: that of our loggers.

    An application that uses structlog without configuring it gets lines of the same form.
    """
    _this_process.is_ours = True
    if not structlog.is_configured():
        structlog.configure(
            processors=_PROCESSORS,
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
            cache_logger_on_first_use=False,
        )
    logging.getLogger("worker_scheduler").setLevel(level)


def to_stderr() -> None:
    """Gives the root logger a handler on stderr. For commands; in a worker and in Beat, Celery does it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        OneLine(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z"))
    )
    logging.getLogger().handlers = [handler]


_one_import = threading.Lock()


@contextmanager
def while_application_is_imported() -> Iterator[None]:
    """To be entered while a worker imports an application's module, which may configure logging.

    The form of all lines is then the application's, and none may be lost. `dictConfig` turns off every
    logger that exists, unless it is told otherwise: ours and Celery's stay on. Celery has replaced stderr
    and stdout by streams that write to the root logger: what the root logger's own handler wrote to one of
    them would be dropped, so the module sees the real ones.
    """
    with _one_import:
        enabled = [logger for logger in _of_worker() if not logger.disabled]
        real_stdout, real_stderr = sys.__stdout__ or sys.stdout, sys.__stderr__ or sys.stderr
        try:
            with redirect_stdout(real_stdout), redirect_stderr(real_stderr):
                yield
        finally:
            for logger in enabled:
                logger.disabled = False


def _of_worker() -> list[logging.Logger]:
    packages = {"worker_scheduler", "celery"}
    loggers = tuple(logging.root.manager.loggerDict.items())
    return [
        logger
        for name, logger in loggers
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in packages
    ]


def _safe_values(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Masks passwords, escapes control characters and bounds each text value. Line ends are left as they
    are: LogfmtRenderer escapes them, and would escape a backslash from here a second time.
    """
    return {
        key: "\n".join(map(escape_control_characters, _masked(value).split("\n")))
        if isinstance(value, str)
        else value
        for key, value in event.items()
    }


_PROCESSORS: list[Processor] = [
    structlog.stdlib.filter_by_level,
    structlog.processors.format_exc_info,  # without local variables
    _safe_values,
    structlog.processors.LogfmtRenderer(key_order=["event"], bool_as_flag=False),
]


@dataclass
class _Process:
    """is_ours: whether it is a command, a worker or a Beat of this package."""

    is_ours: bool = False


_this_process = _Process()


class _Logger:
    """Decides at each line how it is made: a process may configure structlog after it has imported us."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., None]:
        def write(event: str, **values: object) -> None:
            if structlog.is_configured() and not _this_process.is_ours:
                # Their processors may raise anything, which must not keep a job's end from being recorded.
                with suppress(Exception):
                    theirs = getattr(structlog.get_logger(self._name), method)
                    theirs(event, **values)
                    return
            ours = getattr(self._over_logging(), method)
            ours(event, **values)

        return write

    def _over_logging(self) -> Any:
        return structlog.wrap_logger(
            logging.getLogger(self._name),
            processors=_PROCESSORS,
            wrapper_class=structlog.stdlib.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=False,
        )
