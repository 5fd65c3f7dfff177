"""Plan token: what a dry run would do, in one word, so that the command itself can say that it still holds.

It has counts, which can be compared, and two hashes: of what was asked for, and of the selected users.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(r"([0-9]{1,18})-([0-9]{1,18})-([0-9]{1,18})-([0-9a-f]{8})-([0-9a-f]{16})")


@dataclass(frozen=True)
class PlanToken:
    """A plan as it was, or is.

    created: users who would get a job. existing: those who have one, whatever its state, since a job that
    ends does not change the plan. unknown: named users who do not exist. request, users: the hashes.
    """

    created: int
    existing: int
    unknown: int
    request: str
    users: str

    def __str__(self) -> str:
        return f"{self.created}-{self.existing}-{self.unknown}-{self.request}-{self.users}"

    def drift(self, now: PlanToken) -> int:
        """By how much the counts differ, in all."""
        return (
            abs(now.created - self.created)
            + abs(now.existing - self.existing)
            + abs(now.unknown - self.unknown)
        )


def parse(token: str) -> PlanToken:
    """The plan of a token. Raises ValueError with the reason."""
    match = _FORM.fullmatch(token)
    if match is None:
        raise ValueError("is not a plan token")
    created, existing, unknown = (int(match[group]) for group in (1, 2, 3))
    return PlanToken(created, existing, unknown, match[4], match[5])
