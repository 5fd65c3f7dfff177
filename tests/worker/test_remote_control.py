"""WORKER_REMOTE_CONTROL=0: a worker obeys nobody who can publish to the broker."""

from pathlib import Path

import pytest
from celery import Celery
from celery.signals import celeryd_init

from tests.support.messages import Broker
from tests.support.processes import started, worker_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def app_of(deployed: None) -> Celery:
    import worker_scheduler

    return worker_scheduler.app


def test_a_worker_without_remote_control_ignores_every_command(
    deployed: None, environment: dict[str, str], broker: Broker, tmp_path: Path
) -> None:
    app = app_of(deployed)
    obedient = worker_of(environment, tmp_path / "obedient.log", "scheduler", "-n", "obedient@%h")
    deaf = worker_of(
        environment | {"WORKER_REMOTE_CONTROL": "0"}, tmp_path / "deaf.log", "scheduler", "-n", "deaf@%h"
    )
    with started(obedient), started(deaf):
        obedient.wait_for_log("ready.")
        deaf.wait_for_log("ready.")
        (answer,) = app.control.ping(timeout=3)
        assert next(iter(answer)).startswith("obedient@")
        app.control.shutdown()
        assert obedient.wait(30) == 0
        app.send_task("scheduler.reconcile", queue="scheduler")
        wait_until(lambda: "scheduler.reconcile" in deaf.log(), 30, "the other worker, which goes on")
        assert deaf.running


def test_a_worker_that_runs_beat_is_advised_against(
    deployed: None, caplog: pytest.LogCaptureFixture
) -> None:
    app_of(deployed).loader.import_default_modules()
    caplog.set_level("INFO", "worker_scheduler")
    for beat in (False, True):
        celeryd_init.send(sender="worker@h", options={"beat": beat})
        assert ("run celery beat as a process of its own" in caplog.text) == beat
