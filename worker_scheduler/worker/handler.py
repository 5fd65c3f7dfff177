"""Finds the handler that SYNC_HANDLER names. Only what runs jobs imports that handler, never a command.

What the handler's module opens when it is imported, such as a pool of connections, must not be shared by
several processes. So the main process of a prefork worker does not import it: `handler_check.py` tries
that in a process of its own, and each process of the pool imports it at its first job.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache

from worker_scheduler import logs
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.redaction import error_text, escape_control_characters, mask_passwords
from worker_scheduler.worker.handler_rules import fault_of
from worker_scheduler.worker.naming import naming
from worker_scheduler.worker.termination import is_termination
from worker_scheduler.worker.types import RetryLater, SyncJob

log = logs.get_logger(__name__)

Handler = Callable[[SyncJob], object]
"""The application's function that does one job. It returns when the job is done; its value is dropped."""


def require_name(name: str | None) -> str:
    """Returns the value of SYNC_HANDLER. Raises ConfigurationError if it is not set."""
    if name is None:
        raise ConfigurationError(
            ["SYNC_HANDLER is not set: a worker of daily or backfill needs package.module:function"]
        )
    return name


def imported_at_first_job(name: str | None) -> Handler:
    """Returns a handler that imports the one named `package.module:function` when it is first called.

    If that fails, the attempt is put off, and the next one tries again: the last one makes its job FAILED.
    Raises ConfigurationError if there is no name.
    """
    name = require_name(name)

    @cache
    def load() -> Handler:
        with logs.while_application_is_imported():
            return load_handler(name)

    def handle(job: SyncJob) -> object:
        try:
            handler = load()
        except ConfigurationError as error:
            log.error("handler not imported", **naming(job), reason=str(error))
            raise RetryLater(str(error)) from error
        return handler(job)

    return handle


def load_handler(name: str) -> Handler:
    """Returns the function named `package.module:function`.

    Raises ConfigurationError if there is no such function, or if it can be seen that it does not do a job
    when it is called; SystemExit if the pool stops this process.
    """
    module_name, _, attribute = name.partition(":")
    try:
        handler = getattr(importlib.import_module(module_name), attribute)
        fault = fault_of(handler, attribute)
    except (
        Exception,
        SystemExit,
        KeyboardInterrupt,
    ) as error:  # the application's module may raise anything
        if is_termination(error):
            raise
        raise ConfigurationError(
            [f"SYNC_HANDLER='{name}' cannot be imported: {_import_error_reason(error)}"]
        ) from error
    if fault is not None:
        raise ConfigurationError([f"SYNC_HANDLER='{name}' cannot be a handler: it is {fault}"])
    return handler  # type: ignore[no-any-return]


def _import_error_reason(error: BaseException) -> str:
    text = escape_control_characters(mask_passwords(error_text(error)))
    if isinstance(error, ModuleNotFoundError):
        # The command `celery` does not look for modules in the current folder; `python -m celery` does.
        return f"{text}; install it, or add its folder to PYTHONPATH, e.g. PYTHONPATH=."
    if isinstance(error, ImportError | AttributeError):
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")
