"""The ids of a batch's jobs and their users, as one text; it knows neither SQL nor messages.

Postgres aggregates them into it, and Redis cuts them out of it: between the two no Python touches a
single job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ID_CHARACTERS = 36
"""Of a UUID as text."""


@dataclass(frozen=True)
class JobIds:
    """text: for each job its id, then its user's id, with nothing in between."""

    text: str

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> JobIds:
        """From pairs of a job's id and its user's id."""
        return cls("".join(job_id + user_id for job_id, user_id in pairs))

    def __len__(self) -> int:
        """How many jobs."""
        return len(self.text) // (2 * ID_CHARACTERS)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Pairs of a job's id and its user's id."""
        for start in range(0, len(self.text), 2 * ID_CHARACTERS):
            middle = start + ID_CHARACTERS
            yield self.text[start:middle], self.text[middle : middle + ID_CHARACTERS]
