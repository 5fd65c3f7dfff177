"""A worker whose broker refuses it: it asks again, at a pace that leaves the log readable."""

import signal
import time
from pathlib import Path

import pytest

from tests.support import amqp_peer as peers
from tests.support.processes import started, worker_of


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [peers.LOGIN, peers.HOST], ids=lambda one: one.text)
def test_a_worker_that_is_refused_asks_again_after_a_pause(
    refusal: peers.Refusal, environment: dict[str, str], tmp_path: Path
) -> None:
    with peers.amqp_peer(None, refusal) as url:
        worker = worker_of(environment | {"CELERY_BROKER_URL": url}, tmp_path / "log", "scheduler")
        with started(worker):
            worker.wait_for_log(refusal.text)
            time.sleep(7)
            assert worker.running
            assert 2 <= worker.log().count(refusal.text) <= 3, worker.log()
            assert "Frequent restarts" not in worker.log()
            worker.send(signal.SIGTERM)
            assert worker.wait(20) == 0
