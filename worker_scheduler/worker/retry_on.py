"""Which errors of a handler are tried again, as SYNC_RETRY_ON says."""

from __future__ import annotations

import builtins
import pkgutil
from collections.abc import Callable
from functools import cache

from worker_scheduler import logs
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.redaction import error_text, escape_control_characters, mask_passwords
from worker_scheduler.worker.termination import is_termination
from worker_scheduler.worker.types import JobTimeout

log = logs.get_logger(__name__)

RetryOn = Callable[[BaseException], bool]
"""Whether an error is tried again while attempts are left."""

NONE, ALL = "none", "all"
_THERE = {"worker_scheduler", "builtins"}


def never(error: BaseException) -> bool:
    """No error is tried again."""
    return False


def load_retry_on(value: str) -> RetryOn:
    """Returns what SYNC_RETRY_ON says: `none`, `all`, or names of classes between commas.

    Imports the modules of the classes. Raises ConfigurationError if a name is not that of a class of
    exceptions; SystemExit if the pool stops this process.
    """
    if value == NONE:
        return never
    if value == ALL:
        return lambda error: True
    classes = tuple(_class_named(name) for name in value.split(","))
    return lambda error: isinstance(error, classes)


def loaded_at_first_error(value: str) -> RetryOn:
    """As `load_retry_on`, but imports nothing before the first error, and nothing for JobTimeout: the main
    process of a prefork worker asks for that, and must not import the application. See `handler.py`.

    If that fails, errors are not tried again, and each of them is logged with the reason.
    """
    load = cache(load_retry_on)

    def matches(error: BaseException) -> bool:
        try:
            if type(error) is JobTimeout and value not in {NONE, ALL}:
                # Also the main process of a prefork worker asks this, and must not import the application's
                # modules; nor may an import that hangs hold up the end of a job that has timed out.
                return any(isinstance(error, _class_named(name)) for name in _ours_in(value))
            return load(value)(error)
        except ConfigurationError as fault:
            log.error("errors are not tried again", reason=str(fault))
            return False

    return matches


def _ours_in(value: str) -> list[str]:
    """The names for which nothing is imported that is not there already."""
    return [name for name in value.split(",") if "." not in name or name.split(".")[0] in _THERE]


def _class_named(name: str) -> type[BaseException]:
    found = _found(name)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise ConfigurationError([f"SYNC_RETRY_ON: {name} is not a class of exceptions"])
    if issubclass(JobTimeout, found) and name not in _ours_in(name):
        raise ConfigurationError([f"SYNC_RETRY_ON: {name} is {found.__name__}: write {found.__name__}"])
    return found


def _found(name: str) -> object:
    if name == JobTimeout.__name__:
        return JobTimeout
    if "." not in name:
        return getattr(builtins, name, None)
    try:
        return pkgutil.resolve_name(name)
    except (
        Exception,
        SystemExit,
        KeyboardInterrupt,
    ) as error:  # the application's module may raise anything
        if is_termination(error):
            raise
        text = escape_control_characters(mask_passwords(error_text(error)))
        raise ConfigurationError([f"SYNC_RETRY_ON: {name} cannot be imported: {text}"]) from error
