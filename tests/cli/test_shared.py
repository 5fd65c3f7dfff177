"""What the commands share: none of them opens a database or the Celery app by itself."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.command_line import outcome_of

PACKAGE = Path(__file__).resolve().parents[2] / "worker_scheduler"


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.name)
def test_databases_and_the_clock_come_from_wiring(path: Path) -> None:
    assert not re.search(r"\bDatabase\(|\butc_now\b", path.read_text())


@pytest.mark.parametrize("command", ["status", "prune", "migrate"])
def test_commands_of_the_ledger_do_not_make_the_celery_app(command: str) -> None:
    script = (
        "import sys; from worker_scheduler import cli; cli.run(sys.argv[1:]);"
        "print('worker_scheduler.celery_app' in sys.modules)"
    )
    urls = {"DATABASE_URL": "postgresql://127.0.0.1:1/db", "REDIS_URL": "redis://127.0.0.1:1/0"}
    options = ["--older-than", "90d"] if command == "prune" else []
    outcome = outcome_of([sys.executable, "-c", script, command, *options], urls)
    assert outcome.stdout == "False\n"
    assert "Postgres at 127.0.0.1:1/db is unavailable" in outcome.error
