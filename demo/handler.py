"""What a sync handler looks like; this one only takes its time, and syncs nothing."""

import random
import time

from worker_scheduler.worker import SyncJob


def sync(job: SyncJob) -> None:
    """Return, and the job is COMPLETED; raise SkipJob, and it is SKIPPED; anything else, FAILED."""
    time.sleep(random.uniform(0.001, 0.005))
