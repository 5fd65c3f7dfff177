"""Selection: decides which users are in a partition: everyone, or those that a backfill chooses.

Named users are united, whichever option names them. Without a name it is everyone, or everyone who failed.
Of these, --only-failed-in keeps those who failed in a run, and --exclude-logins takes out others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection

from worker_scheduler.config.options import BackfillOptions, TickOptions
from worker_scheduler.config.settings import Settings
from worker_scheduler.errors import Refused
from worker_scheduler.fanout import known_keys
from worker_scheduler.ledger import selected_users, users
from worker_scheduler.ledger.users import UsersRelation
from worker_scheduler.redaction import escape_control_characters

_Item = TypeVar("_Item", UUID, str)

KEPT_AT_MOST = 1000
"""How many unknown users are kept by name, of each kind; the others are counted."""
_SHOWN_AT_MOST = 20


@dataclass
class Unknown:
    """Named users who do not exist. user_ids, github_logins: the first ones."""

    total: int = 0
    user_ids: list[UUID] = field(default_factory=list)
    github_logins: list[str] = field(default_factory=list)

    def note_ids(self, ids: Iterable[UUID]) -> None:
        """Counts ids that no user has."""
        self._note(self.user_ids, ids)

    def note_logins(self, logins: Iterable[str]) -> None:
        """Counts logins that no user has."""
        self._note(self.github_logins, logins)

    def _note(self, kept: list[_Item], unknown: Iterable[_Item]) -> None:
        known_already = set(kept)
        for item in unknown:
            if item in known_already:  # named again in another part of a file
                continue
            self.total += 1
            if len(kept) < KEPT_AT_MOST:
                kept.append(item)
                known_already.add(item)


@dataclass(frozen=True)
class Selection:
    """Which users are in a run. identity: the id of the selection in the ledger; None means every user.

    total: how many users that is now. named_nobody: users were named, and none of them exists.
    """

    identity: UUID | None
    total: int
    unknown: Unknown = field(default_factory=Unknown)
    unknown_excluded: Unknown = field(default_factory=Unknown)
    named_nobody: bool = False


def select_everyone(connection: Connection, relation: UsersRelation) -> Selection:
    """Every user that exists now."""
    return Selection(identity=None, total=users.count(connection, relation))


def select_chosen(
    connection: Connection,
    relation: UsersRelation,
    options: BackfillOptions,
    identity: UUID,
    on_page: Callable[[], None],
) -> Selection:
    """The users that the options choose, written to the ledger within a transaction.

    on_page: called after each page of users. Raises BadInput if there is no run to have failed in, Refused
    if it was pruned.
    """
    failed_in = None
    if options.only_failed_in is not None:
        failed_in = known_keys.require_run(connection, "--only-failed-in", options.only_failed_in)
        if failed_in.pruned_at is not None:
            raise Refused(
                f"partition {failed_in.partition_key} was pruned on {failed_in.pruned_at:%Y-%m-%d},"
                " so it is no longer known who failed in it: choose users in another way"
            )
    unknown, unknown_excluded, named_nobody = Unknown(), Unknown(), False
    if options.named:
        unknown = _add_named(connection, relation, options, identity, on_page)
        named_nobody = selected_users.count(connection, identity) == 0
        if failed_in is not None:
            selected_users.keep_failed(connection, identity, failed_in.run_id, on_page)
    elif failed_in is not None:
        selected_users.add_failed(connection, identity, relation, failed_in.run_id, on_page)
    else:
        selected_users.add_everyone(connection, identity, relation, on_page)
    for logins in _lots(options.exclude_logins or ()):
        unknown_excluded.note_logins(
            selected_users.leave_out_logins(connection, identity, relation, logins)
        )
        on_page()
    total = selected_users.count(connection, identity)
    return Selection(identity, total, unknown, unknown_excluded, named_nobody)


def _add_named(
    connection: Connection,
    relation: UsersRelation,
    options: BackfillOptions,
    identity: UUID,
    on_page: Callable[[], None],
) -> Unknown:
    unknown = Unknown()
    for ids in _lots(options.user_ids or ()):
        unknown.note_ids(selected_users.add_ids(connection, identity, relation, ids))
        on_page()
    for logins in _lots(options.github_logins or ()):
        unknown.note_logins(selected_users.add_logins(connection, identity, relation, logins))
        on_page()
    if options.users_file is not None:
        for ids in options.users_file.ids(selected_users.PAGE):
            unknown.note_ids(selected_users.add_ids(connection, identity, relation, ids))
            on_page()
        for logins in options.users_file.logins(selected_users.PAGE):
            unknown.note_logins(selected_users.add_logins(connection, identity, relation, logins))
            on_page()
    return unknown


def _lots(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for first in range(0, len(items), selected_users.PAGE):
        yield items[first : first + selected_users.PAGE]


def refuse_unknown(selection: Selection, allow_missing: bool) -> None:
    """Raises Refused if a named user does not exist; with `allow_missing`, only if none of them exists."""
    if not allow_missing:
        _refuse(selection.unknown, "")
        # Somebody is to be left out who would now get a job.
        _refuse(selection.unknown_excluded, " in --exclude-logins")
    if selection.named_nobody:
        raise Refused(
            f"none of the {selection.unknown.total} named users exists, nothing is left to enqueue"
        )


def _refuse(unknown: Unknown, where: str) -> None:
    if not unknown.total:
        return
    names = [*map(str, unknown.user_ids), *map(escape_control_characters, unknown.github_logins)]
    named = ", ".join(names[:_SHOWN_AT_MOST])
    more = f" and {unknown.total - _SHOWN_AT_MOST} more" if unknown.total > _SHOWN_AT_MOST else ""
    raise Refused(
        f"{unknown.total} unknown {'user' if unknown.total == 1 else 'users'}{where}: {named}{more};"
        " correct them, or leave them out with --allow-missing"
    )


@dataclass(frozen=True)
class Caps:
    """How many users a tick may select. backfill_max_users: None if it is confirmed, or not a backfill."""

    max_enqueued_jobs: int
    backfill_max_users: int | None

    def exceeded_by(self, total: int) -> int:
        """How many of that many users are more than may be."""
        lowest = min(cap for cap in (self.max_enqueued_jobs, self.backfill_max_users) if cap is not None)
        return max(0, total - lowest)


def caps_of(options: TickOptions, settings: Settings) -> Caps:
    """The caps of a tick: each option stands in for the setting of its name."""
    of_jobs = options.max_enqueued_jobs
    caps = Caps(settings.max_enqueued_jobs if of_jobs is None else of_jobs, None)
    if not isinstance(options, BackfillOptions) or options.confirm or settings.backfill_confirm:
        return caps
    of_users = options.backfill_max_users
    return replace(caps, backfill_max_users=settings.backfill_max_users if of_users is None else of_users)


def refuse_too_many(selection: Selection, caps: Caps) -> None:
    """Raises Refused if more users are selected than one tick may enqueue."""
    if selection.total > caps.max_enqueued_jobs:
        raise Refused(
            f"{selection.total} users selected, more than MAX_ENQUEUED_JOBS={caps.max_enqueued_jobs}:"
            " raise it (--max-enqueued-jobs), or choose fewer users in a backfill"
        )


def refuse_unconfirmed(selection: Selection, caps: Caps) -> None:
    """Raises Refused if a backfill has more users than it may have without being confirmed."""
    if caps.backfill_max_users is not None and selection.total > caps.backfill_max_users:
        raise Refused(
            f"{selection.total} users selected, more than BACKFILL_MAX_USERS={caps.backfill_max_users}:"
            " confirm with --confirm or BACKFILL_CONFIRM=1"
        )
