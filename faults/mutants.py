"""Tests the suite itself: a run against a copy of the product without one of its guards must turn red.

The run has the copy first on its path; the product has no switch for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from faults.faults import Kind
from faults.report import say

_ROOT = Path(__file__).resolve().parent.parent
_COPIED = ("worker_scheduler", "faults", "clocks", "tests/support", "tests/__init__.py", "celeryconfig.py")
_FAULTS = 150
_DEADLINE_SECONDS = 240
RED = "BROKEN: "


class NotAsExpected(Exception):
    """The product does not contain the text that a mutant replaces exactly once."""


@dataclass(frozen=True)
class Change:
    """A text in a file of the product, and what replaces it."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """The product without one guard.

    kind: the faults that show the difference. difference: what the failing run must report. plays: how
    many runs it may take, if chance decides in each fault whether the guard is needed.
    """

    name: str
    changes: tuple[Change, ...]
    kind: Kind
    difference: str
    plays: int = 1


_PUBLISH_UNCOMMITTED = """\
def _publish_uncommitted(run, connection, **how):
    from sqlalchemy import text
    from worker_scheduler.celery_app import app

    chunk = plan.plan_chunk(connection, **how)
    unsent = "FROM sync_batches b WHERE b.run_id = :run_id AND b.enqueued_at IS NULL"
    jobs = connection.execute(
        text(
            "SELECT job_id, user_id FROM sync_jobs j WHERE run_id = :run_id AND EXISTS"
            f" (SELECT {unsent} AND j.job_id BETWEEN b.first_job_id AND b.last_job_id)"
        ),
        {"run_id": run.run_id},
    )
    for job in jobs:
        arguments = [str(job.user_id), run.partition_key, run.triggered_by]
        app.send_task("sync_user", arguments, task_id=str(job.job_id), queue=run.queue)
    connection.execute(
        text("UPDATE sync_batches SET enqueued_at = now() WHERE run_id = :run_id AND enqueued_at IS NULL"),
        {"run_id": run.run_id},
    )
    return chunk


@dataclass(frozen=True)
class Planner:
"""

MUTANTS = (
    Mutant(
        "ON CONFLICT removed",
        (
            Change(
                "worker_scheduler/ledger/plan.py",
                "ON CONFLICT (run_id, user_id) WHERE run_id IS NOT NULL DO NOTHING\n",
                "\n",
            ),
        ),
        Kind.LOCKLESS_HERD,
        "the run is PLANNING",  # the unique index refuses every further attempt, too
    ),
    Mutant(
        "the claim's guard removed",
        (
            Change(
                "worker_scheduler/ledger/jobs.py",
                "{{job}} AND status || '' = 'PENDING'\n        AND (not_before",
                "{{job}}\n        AND (not_before",
            ),
            # Slow enough that jobs still wait when their batch is sent a second time.
            Change("faults/handler.py", 'os.environ.get(SECONDS, "0")', 'os.environ.get(SECONDS, "0.1")'),
        ),
        Kind.GROUP_TICK,
        "jobs done again although no worker was killed while it ran them",
    ),
    Mutant(
        "rows published before they are committed",
        (
            Change(
                "worker_scheduler/fanout/planner.py",
                "@dataclass(frozen=True)\nclass Planner:\n",
                _PUBLISH_UNCOMMITTED,
            ),
            Change(
                "worker_scheduler/fanout/planner.py",
                "            return plan.plan_chunk(\n",
                "            return _publish_uncommitted(\n                run,\n",
            ),
        ),
        Kind.TICK,
        "a worker received a message whose job is not in Postgres",
    ),
    Mutant(
        "no second look at leases that ran out",
        (
            Change(
                "worker_scheduler/maintenance/rules/dead_workers.py",
                "for _ in range(_LOOKS):",
                "for _ in range(0):",
            ),
        ),
        Kind.AWAY,
        "jobs done again although no worker was killed while it ran them",
        plays=4,  # when Postgres is back, a pass must look before the first heartbeat
    ),
    Mutant(
        "the clock of the host instead of Postgres'",
        (
            Change(
                "worker_scheduler/ledger/clock.py",
                "        return self._counted_at(answer, self._monotonic())\n",
                "        return self._host()\n",
            ),
        ),
        Kind.WRONG_CLOCK,
        "a lease of ",
    ),
    Mutant(
        "a handler that swallows its interruption is believed",
        (
            Change(
                "worker_scheduler/worker/claims.py",
                "        if timed_out and self.timeout_seconds and not",
                "        if raised and timed_out and self.timeout_seconds and not",
            ),
        ),
        Kind.BAD_HANDLER,
        "the job of swallows-",
    ),
)


def all_red(seed: int, not_played: Container[Kind]) -> bool:
    """Plays each mutant; returns whether each turned red for the expected reason.

    not_played: kinds that this machine cannot play.
    """
    played = [mutant for mutant in MUTANTS if mutant.kind not in not_played]
    for mutant in MUTANTS:
        if mutant not in played:
            say(f"NOT PLAYED: mutant, {mutant.name}")
    red = [_is_red(mutant, seed) for mutant in played]
    return all(red)


def _is_red(mutant: Mutant, seed: int) -> bool:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in _COPIED:
            source = _ROOT / name
            shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy / name)
        for change in mutant.changes:
            _apply(change, copy)
        for number in range(mutant.plays):
            output = _play(mutant, copy, seed + number)
            broken = next((line for line in output.splitlines() if line.startswith(RED)), "")
            if broken:
                break
    red = mutant.difference in broken
    say(
        f"mutant, {mutant.name}: {'red' if red else 'NOT RED, or for another reason'}\n  {broken or output}"
    )
    return red


def _apply(change: Change, copy: Path) -> None:
    file = copy / change.file
    text = file.read_text()
    if text.count(change.old) != 1:
        raise NotAsExpected(f"{change.file} contains {text.count(change.old)} times: {change.old!r}")
    file.write_text(text.replace(change.old, change.new))


def _play(mutant: Mutant, copy: Path, seed: int) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "faults", "--only", mutant.kind.name],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "SEED": str(seed), "FAULTS": str(_FAULTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_DEADLINE_SECONDS,
        check=False,
    )
    return ended.stdout
