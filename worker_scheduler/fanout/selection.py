"""Selection: decides which users are in a partition: everyone, or those that a backfill names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from worker_scheduler.errors import Refused
from worker_scheduler.ledger import users
from worker_scheduler.ledger.database import Database
from worker_scheduler.ledger.users import UsersRelation
from worker_scheduler.redaction import escape_control_characters

_NAMED_AT_MOST = 20


@dataclass(frozen=True)
class Selection:
    """Which users are in a run. user_ids: None means every user. total: how many users that is now."""

    user_ids: tuple[UUID, ...] | None
    total: int
    missing_user_ids: tuple[UUID, ...] = ()
    missing_github_logins: tuple[str, ...] = ()


def select_everyone(database: Database, relation: UsersRelation) -> Selection:
    """Every user that exists now."""
    with database.autocommit() as connection:
        return Selection(user_ids=None, total=users.count(connection, relation))


def select_named(
    database: Database,
    relation: UsersRelation,
    user_ids: Sequence[UUID],
    github_logins: Sequence[str],
) -> Selection:
    """The named users. A user who is named by id and by login counts once."""
    with database.autocommit() as connection:
        by_id = users.find_by_ids(connection, relation, user_ids)
        by_login = users.find_by_logins(connection, relation, github_logins)
    found_ids, found_logins = set(by_id), {login for login, _ in by_login}
    selected = found_ids | {user_id for _, user_id in by_login}
    return Selection(
        user_ids=tuple(sorted(selected)),
        total=len(selected),
        missing_user_ids=tuple(i for i in user_ids if i not in found_ids),
        missing_github_logins=tuple(name for name in github_logins if name not in found_logins),
    )


def refuse_unknown(selection: Selection, allow_missing: bool) -> None:
    """Raises Refused if a named user does not exist; with `allow_missing`, only if none of them exists."""
    missing = [str(user_id) for user_id in selection.missing_user_ids]
    missing += [escape_control_characters(login) for login in selection.missing_github_logins]
    if missing and not allow_missing:
        named = ", ".join(missing[:_NAMED_AT_MOST])
        more = f" and {len(missing) - _NAMED_AT_MOST} more" if len(missing) > _NAMED_AT_MOST else ""
        raise Refused(
            f"{len(missing)} unknown {'user' if len(missing) == 1 else 'users'}: {named}{more};"
            " correct them, or leave them out with --allow-missing"
        )
    if missing and not selection.total:
        raise Refused(f"none of the {len(missing)} named users exists, nothing is left to enqueue")


def refuse_too_many(selection: Selection, max_enqueued_jobs: int) -> None:
    """Raises Refused if more users are selected than one tick may enqueue."""
    if selection.total > max_enqueued_jobs:
        raise Refused(
            f"{selection.total} users selected, more than MAX_ENQUEUED_JOBS={max_enqueued_jobs}:"
            " raise it (--max-enqueued-jobs), or choose fewer users in a backfill"
        )


def refuse_unconfirmed(selection: Selection, backfill_max_users: int, confirmed: bool) -> None:
    """Raises Refused if a backfill has more users than it may have without being confirmed."""
    if selection.total > backfill_max_users and not confirmed:
        raise Refused(
            f"{selection.total} users selected, more than BACKFILL_MAX_USERS={backfill_max_users}:"
            " confirm with --confirm or BACKFILL_CONFIRM=1"
        )
