"""The options by which `scheduler backfill` chooses users: reads their files, and finds a forgotten @."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from worker_scheduler.cli.item_files import with_files_read
from worker_scheduler.cli.users_file import read_users
from worker_scheduler.config import options
from worker_scheduler.config.options import BackfillOptions
from worker_scheduler.errors import BadInput, Refused
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.report import Report
from worker_scheduler.redaction import show

_LISTS = ("user_ids", "github_logins", "exclude_logins")


def parse(given: Mapping[str, Any]) -> BackfillOptions:
    """The parsed options, with the items of their files. Raises BadInput."""
    read: dict[str, object] = {name: with_files_read(_option(name), given[name]) for name in _LISTS}
    if given["users_file"] is not None:
        read["users_file"] = read_users(given["users_file"])
    try:
        return options.parse_backfill({**given, **read})
    except BadInput as error:
        raise BadInput(f"{error}{_did_you_mean(given, lambda _: True)}") from None


def backfill_of(given: Mapping[str, Any]) -> Callable[[TickContext, BackfillOptions], Report]:
    """The backfill, whose refusal says so if what counts as an unknown login is a file."""

    def backfill(context: TickContext, parsed: BackfillOptions) -> Report:
        report = tick.backfill(context, parsed)
        if isinstance(report.ended_by, Refused) and report.unknown_users:
            unknown = set(report.missing_github_logins)
            report.end(Refused(f"{report.ended_by}{_did_you_mean(given, unknown.__contains__)}"))
        return report

    return backfill


def _did_you_mean(given: Mapping[str, Any], is_suspect: Callable[[str], bool]) -> str:
    for name in _LISTS:
        for part in given[name] or ():
            if is_suspect(part) and os.path.isfile(part):  # noqa: PTH113 - Path raises for what can be no path
                return f"; did you mean {_option(name)} {show('@' + part)}?"
    return ""


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
