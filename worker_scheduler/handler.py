"""Finds the handler that SYNC_HANDLER names. Only workers import it; scheduler and CLI never do."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from worker_scheduler.errors import ConfigurationError

if TYPE_CHECKING:
    from worker_scheduler.worker import SyncJob

    Handler = Callable[[SyncJob], object]


def load_handler(name: str | None) -> Handler:
    """The function named `package.module:function`. Raises ConfigurationError where there is none."""
    if name is None:
        raise ConfigurationError(
            ["SYNC_HANDLER is not set: a worker of daily or backfill needs package.module:function"]
        )
    module_name, _, attribute = name.partition(":")
    try:
        handler = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError([f"SYNC_HANDLER='{name}' cannot be imported: {error}"]) from error
    if not callable(handler) or inspect.iscoroutinefunction(handler):
        raise ConfigurationError([f"SYNC_HANDLER='{name}' is no plain function"])
    return handler  # type: ignore[no-any-return]
