"""The Celery app and its beat schedule. The settings are in celeryconfig.py, the tasks in tasks.py."""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from pathlib import Path
from types import ModuleType

from celery import Celery
from celery.schedules import crontab

from worker_scheduler import checked_app
from worker_scheduler.config.settings import load
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.intake.connection import GatedMessages
from worker_scheduler.task_senders import ACTOR_HEADER, BEAT

DAILY_TICK = "scheduler.daily_tick"
BACKFILL = "scheduler.backfill"
RECONCILE = "scheduler.reconcile"
DAILY_TICK_ENTRY = "daily-tick"
"""The name of the daily tick in RedBeat's schedule."""
RECONCILE_ENTRY = "reconcile"
"""The name of reconcile in RedBeat's schedule."""

_PACKAGE = Path(__file__).resolve().parent
_CONFIG_FILES = (_PACKAGE / "celeryconfig.py", _PACKAGE.parent / "celeryconfig.py")
"""Where our celeryconfig.py may be: in the package if it is installed, beside the package in a checkout."""

_OURS = "from worker_scheduler.config.settings import load"
"""A line of our celeryconfig.py. Beside an installed package there may be another application's file."""


def _our_celeryconfig() -> ModuleType:
    """Loads celeryconfig.py by its path, so that no other module of that name is taken instead.

    Raises ConfigurationError if there is none, or if the settings that it loads are wrong.
    """
    for file in _CONFIG_FILES:
        if file.is_file() and _OURS in file.read_text(encoding="utf-8", errors="replace"):
            return _module_from(file)
    raise ConfigurationError([f"{_CONFIG_FILES[0]} is missing: install worker-scheduler again"])


def _module_from(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("worker_scheduler_celeryconfig", file)
    assert spec is not None and spec.loader is not None  # as for every path that ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _create_app() -> Celery:
    app = checked_app.create(
        "worker_scheduler",
        _our_celeryconfig(),
        include=["worker_scheduler.tasks", "worker_scheduler.steering_tasks"],
        amqp=GatedMessages,
    )
    settings = load()
    app.conf.beat_schedule = {
        DAILY_TICK_ENTRY: {
            "task": DAILY_TICK,
            "schedule": crontab.from_string(settings.daily_tick_cron),
            "options": {"queue": "scheduler", "headers": {ACTOR_HEADER: BEAT}},
        },
        RECONCILE_ENTRY: {
            "task": RECONCILE,
            "schedule": timedelta(seconds=settings.reconcile_interval_seconds),
            # No expiry, since that would compare Beat's clock with a worker's. While no worker runs, these
            # messages pile up; of those, one makes a pass (`reconcile_if_due`).
            "options": {"queue": "scheduler"},
        },
    }
    return app


app = _create_app()
