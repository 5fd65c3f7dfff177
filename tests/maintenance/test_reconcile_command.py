"""The command `scheduler reconcile`."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.maintenance.situations import RULE_NAMES
from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users


def test_the_command_says_what_it_put_right(
    scheduler: Callable[..., Outcome], ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 3)
    today = datetime.now(UTC).date().isoformat()
    scheduler("daily", "--date", today)
    assert scheduler("reconcile").stdout == "nothing to put right\n"
    broker.lose_everything()
    outcome = scheduler("reconcile", "--json")
    assert outcome.status == 0
    assert outcome.report == {
        **dict.fromkeys(RULE_NAMES, 0),
        **{"lost_broker_data": 1, "abandoned_runs": 1, "errors": []},
    }
    ledger.execute("UPDATE sync_jobs SET status = 'COMPLETED'")
    assert scheduler("reconcile").stdout == "finished runs: 1\n"


def test_the_command_when_the_tables_do_not_exist(
    empty_database_url: str, scheduler: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    outcome = scheduler("reconcile")
    assert outcome.status == 2
    assert "scheduler migrate" in outcome.error


def test_the_command_without_a_broker(
    scheduler: Callable[..., Outcome], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 3)
    scheduler("daily")
    monkeypatch.setenv("REDIS_URL", "redis://:topsecret@localhost:1/0")
    monkeypatch.setenv("PUBLISHER", "group")
    outcome = scheduler("reconcile", "--json")
    assert outcome.status == 4
    assert len(outcome.report["errors"]) >= 1
    assert "topsecret" not in outcome.stdout + outcome.stderr
