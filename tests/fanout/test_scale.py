"""Twenty thousand users with the installed command: each gets exactly one job."""

from collections.abc import Mapping

import pytest

from tests.support.command_line import as_process
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users

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
