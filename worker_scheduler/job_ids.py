"""The ids of a batch's jobs and their users, as one text.

Postgres joins the ids into this text and Redis cuts them out of it, so that no Python code runs per job in
between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ID_CHARACTERS = 36
"""The length of a UUID as text."""


@dataclass(frozen=True)
class JobIds:
    """text: for each job its id, then its user's id, with nothing in between."""

    text: str

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> JobIds:
        """Joins pairs of a job's id and its user's id."""
        return cls("".join(job_id + user_id for job_id, user_id in pairs))

    def __len__(self) -> int:
        """The number of jobs."""
        return len(self.text) // (2 * ID_CHARACTERS)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yields pairs of a job's id and its user's id."""
        for start in range(0, len(self.text), 2 * ID_CHARACTERS):
            middle = start + ID_CHARACTERS
            yield self.text[start:middle], self.text[middle : middle + ID_CHARACTERS]
