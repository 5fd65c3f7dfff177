"""Another application: its own Celery app and its own `sync_user`, which claims the scheduler's jobs."""

import os

from celery import Celery

from worker_scheduler.worker import RetryLater, SkipJob, claim

app = Celery("theirs", broker=os.environ["REDIS_URL"])
app.conf.broker_transport_options = {"global_keyprefix": os.environ["REDIS_KEY_PREFIX"]}


@app.task(name="sync_user", bind=True, acks_late=True)
def sync_user(self, user_id, partition_key, triggered_by, backfill_days=None):  # type: ignore[no-untyped-def]
    with claim(self.request.id) as job:
        if job is not None:
            synchronise(job.github_login, job.backfill_days)


def synchronise(login: str | None, backfill_days: int | None) -> None:
    if login == "user-1":
        raise SkipJob("has no repositories")
    if login == "user-2":
        raise RuntimeError("no such account")
    if login == "user-3":
        raise RetryLater("rate limit", delay=3600)
