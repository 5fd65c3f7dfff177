"""Why jobs did not complete, in a form that can be counted: the class of the error, and a fingerprint of
its text without what differs from job to job.

The idea is that of error trackers, which group events by a hash of their normalised text.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

SKIPPED = "skipped"
TIMED_OUT = "timed_out"
PROCESS_LOST = "process_lost"
WORKER_LOST = "worker_lost"
INTERRUPTED = "interrupted"
CANCELLED = "cancelled"
REVOKED = "revoked"
OURS = frozenset({SKIPPED, TIMED_OUT, PROCESS_LOST, WORKER_LOST, INTERRUPTED, CANCELLED, REVOKED})
"""Reasons that no handler raised. The name of a class has a module and a point before it."""

_LONGEST_CLASS = 200
_NOT_SHOWN = (
    (re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE), "<url>"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b0x[0-9a-f]+\b|\b(?=[0-9a-f]*[0-9])[0-9a-f]{8,}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\d+(?:[.,:]\d+)*"), "<n>"),
    (re.compile(r"\s+"), " "),
)


class Reason(NamedTuple):
    """Why a job did not complete. name: a class of Python with its module, or one of OURS."""

    name: str
    fingerprint: int | None


def of_error(error: BaseException, text: str, login: str | None = None) -> Reason:
    """The reason that a handler raised. text: as the job's row has it. login: that of its user."""
    kind = type(error)
    return Reason(f"{kind.__module__}.{kind.__qualname__}"[:_LONGEST_CLASS], fingerprint(text, login))


def ours(name: str, text: str | None, login: str | None = None) -> Reason:
    """One of OURS."""
    return Reason(name, None if text is None else fingerprint(text, login))


def fingerprint(text: str, login: str | None = None) -> int:
    """A number of 64 bits that texts share which differ only in ids, numbers, URLs and the user's login."""
    digest = hashlib.sha256(normalised(text, login).encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def normalised(text: str, login: str | None = None) -> str:
    """The text with `<url>`, `<id>`, `<n>` and `<login>` for what differs from job to job."""
    if login:
        text = re.sub(rf"(?<![\w-]){re.escape(login)}(?![\w-])", "<login>", text)
    for pattern, word in _NOT_SHOWN:
        text = pattern.sub(word, text)
    return text.strip()
