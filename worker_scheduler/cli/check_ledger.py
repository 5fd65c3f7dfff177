"""The part of `scheduler check` that looks at settings and rights in Postgres, and at the users."""

from __future__ import annotations

from collections.abc import Iterator

from worker_scheduler.cli.finding import Finding, Severity, fault
from worker_scheduler.cli.output import counted
from worker_scheduler.config.settings import Settings
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.ledger import inspection, users
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.users import UsersRelation

_ESCAPED = r"\U0001f600"


def check_settings(database: Database) -> Iterator[Finding]:
    """Warnings about what the server, the database or the role sets."""
    with database.autocommit() as connection:
        encoding = inspection.encoding_of(connection)
        settings = inspection.odd_settings(connection)
    if encoding != "UTF8":
        yield Finding(
            "Postgres",
            f"the database's encoding is {encoding}: a character that it lacks is stored as {_ESCAPED}",
            Severity.WARNING,
        )
    for name, value in settings:
        remedy = "'read committed'" if name == "default_transaction_isolation" else "0, or at least 30 s"
        yield Finding(
            "Postgres",
            f"{name} is {value}, so statements of a tick may be refused: set it to {remedy} for this role",
            Severity.WARNING,
        )


def check_rights(database: Database) -> Iterator[Finding]:
    """Whether this role may do what ticks and reconcile do."""
    with database.autocommit() as connection:
        missing = inspection.missing_rights(connection)
        guarded = inspection.guarded_tables(connection)
        of_workers = inspection.missing_rights_of_workers(connection)
    if missing:
        yield fault(
            "rights",
            f"this role lacks {', '.join(missing)}: grant it, see docs/security.md",
            ConfigurationError,
        )
    if guarded:
        yield fault(
            "rights",
            f"row level security hides rows of {', '.join(guarded)} from this role: switch it off for these"
            " tables, or give the role BYPASSRLS",
            ConfigurationError,
        )
    if not missing and not guarded:
        yield Finding("rights", "this role may do what ticks and reconcile do")
    for role, lacked in of_workers.items():
        yield Finding(
            "rights",
            f"the role {role} may change jobs, but lacks {', '.join(lacked)}: if workers use it, grant"
            " that, see docs/security.md",
            Severity.WARNING,
        )


def check_users(database: Database, settings: Settings) -> Iterator[Finding]:
    """Whether there are users for a tick."""
    relation = UsersRelation(settings.users_relation)
    with database.autocommit() as connection:
        users.require_relation(connection, relation)
        number = users.count(connection, relation)
        guard = inspection.guard_of_users(connection, relation)
    if guard is not None and guard.has_rows and not number:
        yield fault(
            "users",
            f"{relation.shown} has no user for this role, since row level security of {guard.name} hides"
            " them: give the role a policy for SELECT, or BYPASSRLS",
            ConfigurationError,
        )
        return
    text = (
        f"{relation.shown} has {counted(number, 'user')}; a tick takes at most {settings.max_enqueued_jobs}"
    )
    if not number:
        yield Finding(
            "users", f"{text}, and makes no job: is USERS_RELATION the right one?", Severity.WARNING
        )
    elif number > settings.max_enqueued_jobs:
        yield Finding(
            "users", f"{text}, so the daily tick is refused: raise MAX_ENQUEUED_JOBS", Severity.WARNING
        )
    else:
        yield Finding("users", text)
    if guard is not None and number:
        yield Finding(
            "users",
            f"row level security of {guard.name} may hide users from this role: they get no job",
            Severity.WARNING,
        )
