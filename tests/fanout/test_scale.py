"""Many users with the installed command: each gets exactly one job, and memory does not grow with them."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.command_line import as_process
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users, user_id

DAY = "2026-11-23"


def daily(environment: Mapping[str, str]) -> dict[str, object]:
    outcome = as_process(environment, "daily", "--date", DAY, "--json")
    assert outcome.status == 0
    return outcome.report


@pytest.mark.slow
def test_twenty_thousand_then_nothing_then_ten_more(
    environment: dict[str, str], ledger: Ledger, broker: Broker
) -> None:
    environment |= {"MAX_ENQUEUED_JOBS": "30000", "ENQUEUE_SLEEP_SECONDS": "0", "LOG_LEVEL": "WARNING"}
    make_users(ledger.url, 20_000)
    first = daily(environment)
    assert (first["outcome"], first["jobs_inserted"], first["jobs_enqueued"]) == (
        "enqueued",
        20_000,
        20_000,
    )
    assert first["batches"] == 100
    assert ledger.count() == broker.count("daily") == 20_000
    again = daily(environment)
    assert (again["outcome"], again["jobs_inserted"], again["jobs_enqueued"]) == ("nothing_to_do", 0, 0)
    assert ledger.count() == broker.count("daily") == 20_000
    make_users(ledger.url, 20_010)
    more = daily(environment)
    assert (more["outcome"], more["jobs_inserted"], more["jobs_enqueued"]) == ("enqueued", 10, 10)
    row = ledger.row("SELECT count(*) AS jobs, count(DISTINCT user_id) AS users FROM sync_jobs")
    assert (row["jobs"], row["users"]) == (20_010, 20_010)
    sent = {message.task_id for message in broker.messages("daily")}
    assert broker.count("daily") == len(sent) == 20_010
    assert sent == {str(job["job_id"]) for job in ledger.rows("SELECT job_id FROM sync_jobs")}


# Runs its arguments, and prints last how much memory they had at most, in KiB.
MEASURED = (
    "import resource, subprocess, sys; status = subprocess.run(sys.argv[1:]).returncode;"
    " print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
)
MILLION = 1_000_000


def measured(environment: Mapping[str, str], *arguments: str) -> tuple[dict[str, object], float]:
    """The report of a command, and its memory in MB."""
    command = [
        sys.executable,
        "-c",
        MEASURED,
        sys.executable,
        "-m",
        "worker_scheduler",
        *arguments,
        "--json",
    ]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr
    report, kib = ended.stdout.splitlines()
    return json.loads(report), int(kib) * 1024 / 1e6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("separator", ["\n", ","])
@pytest.mark.parametrize("item", ["id", "login"])
def test_a_million_users_of_a_file_need_150_mb(
    item: str, separator: str, environment: dict[str, str], ledger: Ledger, tmp_path: Path
) -> None:
    environment |= {"MAX_ENQUEUED_JOBS": "2000000", "LOG_LEVEL": "WARNING"}
    make_users(ledger.url, MILLION)
    ledger.execute("ANALYZE users")
    items = (str(user_id(n)) if item == "id" else f"user-{n}" for n in range(1, MILLION + 1))
    (tmp_path / "users").write_text(separator.join(items))
    named = ["backfill", "--backfill-days", "1", "--users-file", str(tmp_path / "users"), "--confirm"]
    report, megabytes = measured(environment, *named, "--dry-run")
    assert report["would_insert"] == MILLION
    assert megabytes <= 150
    # For real, and only nine of them exist: a million messages are of no interest here.
    ledger.execute("DELETE FROM users WHERE github_login !~ '^user-[0-9]$'")
    report, megabytes = measured(environment, *named, "--allow-missing")
    assert (report["jobs_enqueued"], report["unknown_users"]) == (9, MILLION - 9)
    assert megabytes <= 150
