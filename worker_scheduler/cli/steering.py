"""`scheduler pause`, `resume` and `cancel`: what an operator wants of a run or of the schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import typer

from worker_scheduler import wiring
from worker_scheduler.cli import shared
from worker_scheduler.cli.output import print_json, print_line, swept
from worker_scheduler.cli.shared import AsJson
from worker_scheduler.config import options, verb_options
from worker_scheduler.config.verb_options import VerbOptions
from worker_scheduler.control import cancel as cancelling
from worker_scheduler.control import pause as pausing
from worker_scheduler.control import retry as retrying
from worker_scheduler.control.change import Change
from worker_scheduler.control.request import Request
from worker_scheduler.control.retry import Selection
from worker_scheduler.ledger.requests import Asked
from worker_scheduler.ledger.retries import Wanted

Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Why; kept for `scheduler audit`.")]
Actor = Annotated[str | None, typer.Option(metavar="NAME", help="Who wants it. Default: user@host.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="Key of the run, such as daily:2026-11-23.")]
KeyOrDaily = Annotated[
    str, typer.Argument(metavar="KEY", help="Key of the run, or `daily` for the daily schedule.")
]


def pause(
    key: KeyOrDaily,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|2h", help="When it ends by itself: a duration, or a time with an offset."
        ),
    ] = None,
    reason: Reason = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> int:
    """Let no further job of a run start, from 5 s after this command; or let no day start."""
    parsed = verb_options.parse_pause({"until": until, "reason": reason, "actor": actor})
    asked_options = {} if until is None else {"until": until}
    with _request("pause", key, parsed, asked_options) as request:
        return _print(pausing.pause(request, parsed.until), as_json)


def resume(key: KeyOrDaily, reason: Reason = None, actor: Actor = None, as_json: AsJson = False) -> int:
    """End the pause of a run, or of the daily schedule."""
    parsed = verb_options.parse_verb({"reason": reason, "actor": actor})
    with _request("resume", key, parsed) as request:
        return _print(pausing.resume(request), as_json)


def cancel(key: Key, reason: Reason = None, actor: Actor = None, as_json: AsJson = False) -> int:
    """Let no further job of a run start, and end its waiting jobs as SKIPPED. Running jobs finish."""
    parsed = verb_options.parse_verb({"reason": reason, "actor": actor})
    with _request("cancel", key, parsed) as request, swept() as on_progress:
        change = cancelling.cancel(request, on_progress)
    return _print(change, as_json)


def retry(
    key: Key,
    only: Annotated[
        str | None, typer.Option(metavar="END", help="failed, skipped or cancelled jobs. Required.")
    ] = None,
    error_like: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only jobs whose error contains this.")
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option(metavar="ID,ID", help="Only these users. Repeatable.")
    ] = None,
    limit: Annotated[
        str | None, typer.Option(metavar="N", help="At most so many jobs, to try a fix first.")
    ] = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Allow more jobs than BACKFILL_MAX_USERS.")
    ] = False,
    reason: Reason = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> int:
    """Give final jobs of a run another chance, each with a fresh budget of attempts."""
    given: dict[str, object] = {"error_like": error_like, "user_ids": user, "limit": limit}
    given = {name: value for name, value in given.items() if value is not None}
    if only is not None:
        given["only"] = only
    parsed = verb_options.parse_retry({**given, "confirm": confirm, "reason": reason, "actor": actor})
    settings = shared.load_and_log()
    shown = {**given, "confirm": confirm} | ({"user_ids": len(parsed.user_ids)} if parsed.user_ids else {})
    most = None if parsed.confirm else settings.backfill_max_users
    with _request("retry", key, parsed, shown) as request, swept() as on_progress:
        change = retrying.retry(
            request,
            Selection(Wanted(parsed.only), parsed.error_like, parsed.user_ids, parsed.limit),
            max_attempts=settings.sync_max_attempts,
            most_unconfirmed=most,
            on_progress=on_progress,
        )
    return _print(change, as_json)


@contextmanager
def _request(
    verb: str, key: str, parsed: VerbOptions, given: Mapping[str, object] | None = None
) -> Iterator[Request]:
    settings = shared.load_and_log()
    options.require_partition_key(key, "KEY")
    asked = Asked(
        verb=verb,
        partition_key=key,
        actor=parsed.actor or shared.user_at_host(),
        source=shared.requested_by(),
        reason=parsed.reason,
        options=given or {},
    )
    with shared.ledger(settings) as database:
        yield Request(database, wiring.ledger_clock(database, settings.lease), asked)


def _print(change: Change, as_json: bool) -> int:
    if as_json:
        print_json(change.as_json())
    else:
        print_line(f"{change.partition_key}: {change.sentence}")
    return 0
