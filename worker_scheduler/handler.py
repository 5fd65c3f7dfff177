"""Finds the handler that SYNC_HANDLER names. Only workers import it; scheduler and CLI never do."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from worker_scheduler.errors import ConfigurationError
from worker_scheduler.redaction import escape_control_characters, mask_passwords

if TYPE_CHECKING:
    from worker_scheduler.worker import SyncJob

Handler = Callable[["SyncJob"], object]
"""What does a job; see README.md."""


def load_handler(name: str | None) -> Handler:
    """The function named `package.module:function`. Raises ConfigurationError where there is none."""
    if name is None:
        raise ConfigurationError(
            ["SYNC_HANDLER is not set: a worker of daily or backfill needs package.module:function"]
        )
    module_name, _, attribute = name.partition(":")
    try:
        handler = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # the module is the application's, and may raise anything
        raise ConfigurationError([f"SYNC_HANDLER='{name}' cannot be imported: {_reason(error)}"]) from error
    if not callable(handler) or inspect.iscoroutinefunction(handler):
        raise ConfigurationError([f"SYNC_HANDLER='{name}' is no plain function"])
    return handler  # type: ignore[no-any-return]


def _reason(error: Exception) -> str:
    text = escape_control_characters(mask_passwords(str(error)))
    if isinstance(error, ModuleNotFoundError):
        # `celery` as a command does not look for modules where it is called; `python -m celery` does.
        return f"{text}; install it, or name its folder in PYTHONPATH, e.g. PYTHONPATH=."
    if isinstance(error, ImportError | AttributeError):
        return text
    return f"{type(error).__name__}: {text}"
