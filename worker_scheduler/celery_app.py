"""The Celery app and its beat schedule. The settings are in celeryconfig.py, the tasks in tasks.py."""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from pathlib import Path
from types import ModuleType

from celery import Celery
from celery.schedules import crontab

from worker_scheduler.errors import ConfigurationError
from worker_scheduler.publisher.slim import SlimMessages
from worker_scheduler.settings import load

DAILY_TICK = "scheduler.daily_tick"
BACKFILL = "scheduler.backfill"
RECONCILE = "scheduler.reconcile"
DISPATCH = "scheduler.dispatch"
DAILY_TICK_ENTRY = "daily-tick"
"""The name of the daily tick in RedBeat's schedule."""
RECONCILE_ENTRY = "reconcile"
"""The name of reconcile in RedBeat's schedule."""

_CONFIG_FILE = Path(__file__).resolve().parent.parent / "celeryconfig.py"


def _our_celeryconfig() -> ModuleType:
    """The celeryconfig.py beside this package, whatever else has that name on the path.

    Raises ConfigurationError where another distribution has put its own in that place.
    """
    spec = importlib.util.spec_from_file_location("worker_scheduler_celeryconfig", _CONFIG_FILE)
    if spec is None or spec.loader is None or not _CONFIG_FILE.is_file():
        raise ConfigurationError([f"{_CONFIG_FILE} is missing: install worker-scheduler again"])
    module = importlib.util.module_from_spec(spec)
    if "worker_scheduler" not in (spec.loader.get_source(spec.name) or ""):  # type: ignore[attr-defined]
        raise ConfigurationError(
            [f"{_CONFIG_FILE} is not worker_scheduler's: another package has replaced it"]
        )
    spec.loader.exec_module(module)
    return module


def _create_app() -> Celery:
    app = Celery("worker_scheduler", include=["worker_scheduler.tasks"], amqp=SlimMessages)
    app.config_from_object(_our_celeryconfig())
    settings = load()
    interval = settings.reconcile_interval_seconds
    app.conf.beat_schedule = {
        DAILY_TICK_ENTRY: {
            "task": DAILY_TICK,
            "schedule": crontab.from_string(settings.daily_tick_cron),
            "options": {"queue": "scheduler"},
        },
        RECONCILE_ENTRY: {
            "task": RECONCILE,
            "schedule": timedelta(seconds=interval),
            # Rings that piled up while no worker was there say nothing that the next one does not.
            "options": {"queue": "scheduler", "expires": interval},
        },
    }
    return app


app = _create_app()
