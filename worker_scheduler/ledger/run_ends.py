"""Parts of SQL about the end of a run, for the statements that finish a run and that open it again."""

COUNTED = """
    SELECT count(*) FILTER (WHERE status = 'COMPLETED') AS completed,
           count(*) FILTER (WHERE status = 'FAILED') AS failed,
           count(*) FILTER (WHERE status = 'SKIPPED') AS skipped,
           count(*) FILTER (WHERE status = 'SKIPPED' AND cancelled_at IS NOT NULL) AS cancelled
    FROM sync_jobs WHERE run_id = :run_id
"""
"""The counts `c` of the run :run_id."""

ENDED = """
    state = 'FINISHED', finished_at = :now,
    completed = c.completed, failed = c.failed, skipped = c.skipped, cancelled = c.cancelled,
    first_finished_at = coalesce(r.first_finished_at, :now),
    first_completed = CASE WHEN r.first_finished_at IS NULL THEN c.completed ELSE r.first_completed END,
    first_failed = CASE WHEN r.first_finished_at IS NULL THEN c.failed ELSE r.first_failed END,
    first_skipped = CASE WHEN r.first_finished_at IS NULL THEN c.skipped ELSE r.first_skipped END
"""
"""What the end at :now sets in the run `r`. Its first end stays known when it is opened again."""

KEPT = """
    first_finished_at = coalesce(r.first_finished_at, r.finished_at),
    first_completed = CASE WHEN r.first_finished_at IS NULL THEN r.completed ELSE r.first_completed END,
    first_failed = CASE WHEN r.first_finished_at IS NULL THEN r.failed ELSE r.first_failed END,
    first_skipped = CASE WHEN r.first_finished_at IS NULL THEN r.skipped ELSE r.first_skipped END
"""
"""What opening the run `r` again sets. A pass of earlier code, which began before the migration, may have
finished a run without noting that it was the first time.
"""
