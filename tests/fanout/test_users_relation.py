"""USERS_RELATION may name a relation in any way that Postgres allows within quotes."""

import re
from collections.abc import Callable

import pytest

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.users import make_users, user_id
from worker_scheduler import wiring

Scheduler = Callable[..., Outcome]

NAMES = (
    *('"x :name"', '":name"', '"a::b"', '":a:b :c"', '"x :relation {conditions}"', '"a:"'),
    *('"back\\slash"', '"back\\:slash"', '"\\"', '"x\\ :y"', '"\\x41"', '"%"', '"%s"', '"%(id)s %% %"'),
    *('"o\'clock"', '"$1"', '"{}"', '"a;b"', '"--"', '"/*"', '"ünï 😀"', '"select"', '"  "', '"\t"'),
    *('"of sync_jobs :x"', '"sync_runs"', '"a.sync_jobs"'),
)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_in_quotes_works(
    name: str, ledger: Ledger, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 3)
    relation = f'"s :p%\\".{name}'
    ledger.execute('CREATE SCHEMA "s :p%\\"')
    ledger.execute(f"CREATE VIEW {relation} AS SELECT id, github_login FROM users")
    monkeypatch.setenv("USERS_RELATION", relation)
    monkeypatch.setenv("BACKFILL_MAX_USERS", "5")
    checked = scheduler("check")
    assert checked.faults == []
    assert all(re.match("(ok|warn|FAULT) ", line) for line in checked.stdout.splitlines())
    assert scheduler("daily", "--date", "2026-11-24", "--dry-run", "--json").report["would_insert"] == 3
    assert scheduler("daily", "--date", "2026-11-24", "--json").report["jobs_enqueued"] == 3
    chosen = ("--user-ids", str(user_id(1)), "--github-logins", "user-2")
    report = scheduler("backfill", "--backfill-days", "7", "--json", *chosen).report
    assert report["jobs_enqueued"] == 2, str(report)[-300:]
    for job in ledger.jobs():
        wiring.process_worker().run(job["job_id"], lambda _: None)
    assert ledger.states() == {"COMPLETED": 5}


@pytest.mark.parametrize(
    "name", ['"a""b"', '"a', 'a"', 'a."b', "a b", "a:b", "a\\b", "a%b", '"a"."b"."c"', '""']
)
def test_any_other_name_is_refused_in_one_line(
    name: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USERS_RELATION", name)
    outcome = scheduler("daily")
    assert outcome.status == 2
    assert "USERS_RELATION=" in outcome.error and "is not a valid relation name" in outcome.error


def test_a_name_with_control_characters_stays_in_one_line(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USERS_RELATION", '"line\nbreak \x1b[31m"')
    outcome = scheduler("daily")
    assert outcome.status == 2
    assert "USERS_RELATION='\"line\\nbreak \\x1b[31m\"': there is no such table" in outcome.error
    assert scheduler("check").faults == [
        "FAULT users: USERS_RELATION='\"line\\nbreak \\x1b[31m\"': there is no such table or view in the"
        " database"
    ]
