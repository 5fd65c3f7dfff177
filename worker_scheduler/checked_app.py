"""A Celery app whose broker is the one that was checked, whatever variables Celery would read itself.

Celery gives CELERY_BROKER_URL, CELERY_BROKER_READ_URL, CELERY_BROKER_WRITE_URL and CELERY_RESULT_BACKEND
precedence over its configuration, and takes them as they are. The first is a variable of ours, which
`config/settings.py` checks and normalises, and celeryconfig.py then holds. The variables stay in the
environment: a handler may have a Celery app of its own that needs them.
"""

from __future__ import annotations

import os
from functools import cached_property
from types import ModuleType
from typing import Any

from celery import Celery
from celery.app.utils import Settings as CelerySettings
from celery.backends.base import DisabledBackend

from worker_scheduler.errors import ConfigurationError

_SECOND_BROKERS = ("CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL")
# The command `celery` takes them for its option --broker, and writes that into CELERY_BROKER_URL. So within
# that command nobody can tell any more what the other processes use.
_OTHER_NAMES = ("BROKER_URL", "CELERY_BROKER")


class _CheckedSettings(CelerySettings):  # type: ignore[misc]
    """Celery's settings, without the variables that Celery reads in their place."""

    @property
    def broker_url(self) -> str:
        return str(self["broker_url"])

    @property
    def broker_read_url(self) -> str:
        return self.broker_url

    @property
    def broker_write_url(self) -> str:
        return self.broker_url

    @property
    def result_backend(self) -> Any:
        return self["result_backend"]


class _App(Celery):  # type: ignore[misc]
    @cached_property
    def backend(self) -> Any:
        """Celery's own stand-in, if no result backend is set. Celery would look it up by name in the
        metadata of every installed package, which takes longer than to render a message.
        """
        return DisabledBackend(app=self) if self.conf.result_backend is None else super().backend

    @cached_property
    def Beat(self) -> Any:
        """The program `celery beat`."""
        return self.subclass_with_self("worker_scheduler.beat:Program", name="Beat")


def create(name: str, configuration: ModuleType, **options: Any) -> Celery:
    """Returns an app with the settings of `configuration`.

    Raises ConfigurationError if a variable of Celery's would name the broker beside CELERY_BROKER_URL.
    """
    faults = _other_brokers()
    if faults:
        raise ConfigurationError(faults)
    # The loader is named, since CELERY_LOADER may name another, which reads another configuration.
    app = _App(name, loader="celery.loaders.app:AppLoader", **options)
    app.config_from_object(configuration, force=True)
    checked = _CheckedSettings({})
    checked.__dict__.update(app.conf.__dict__)
    app.conf = checked
    return app


def _other_brokers() -> list[str]:
    faults: list[str] = []
    for name in _SECOND_BROKERS:
        if os.environ.get(name):
            # Reconcile looks for lost messages in one place, where they are sent and taken.
            faults.append(f"{name} is set, and there is one broker for reading and writing: unset it")
    for name in _OTHER_NAMES:
        if os.environ.get(name):
            faults.append(
                f"{name} is set, and the command celery would use it as the broker, but the scheduler would"
                " not: unset it; CELERY_BROKER_URL names the broker"
            )
    return faults
