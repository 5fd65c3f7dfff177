"""What a sync handler looks like. This one only waits a few milliseconds."""

import random
import time

from worker_scheduler import SyncJob


def sync(job: SyncJob) -> None:
    """Syncs one user.

    If it returns, the job is COMPLETED; if it raises SkipJob, SKIPPED; any other exception makes it FAILED.
    """
    time.sleep(random.uniform(0.001, 0.005))
