"""An application without the scheduler: stock Celery with its own settings."""

import os
from pathlib import Path

from celery import Celery

from tests.support.waiting import wait_until

app = Celery("stock", broker=os.environ["REDIS_URL"])
app.conf.broker_transport_options = {"global_keyprefix": os.environ["REDIS_KEY_PREFIX"]}
app.conf.worker_send_task_events = True


@app.task(name="sync_user")  # type: ignore[untyped-decorator] # Celery has no types
def sync_user(user_id: str, partition_key: str, triggered_by: str) -> str:
    """Ends when the file named by GATE exists."""
    wait_until(Path(os.environ["GATE"]).exists, 60, "the gate")
    return f"{user_id} {partition_key} {triggered_by}"
