"""Reads and changes the ledger's tables directly, on purpose without the product's SQL."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier

TABLES = ("sync_runs", "sync_selected_users", "sync_batches", "sync_jobs", "sync_locks", "sync_tasks")

Row = dict[str, Any]


class Ledger:
    """The tables of one database; each call uses its own connection and transaction."""

    def __init__(self, url: str) -> None:
        self.url = url

    def rows(self, query: str, *parameters: object) -> list[Row]:
        """What a query returns."""
        with psycopg.connect(self.url, row_factory=dict_row) as connection:
            return connection.execute(query.encode(), parameters or None).fetchall()

    def row(self, query: str, *parameters: object) -> Row:
        """The one row that a query returns."""
        (row,) = self.rows(query, *parameters)
        return row

    def value(self, query: str, *parameters: object) -> Any:
        """The one value that a query returns."""
        (value,) = self.row(query, *parameters).values()
        return value

    def execute(self, *statements: str) -> None:
        """Statements that return nothing, in one transaction."""
        with psycopg.connect(self.url) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def jobs(self, partition_key: str | None = None) -> list[Row]:
        """The jobs, in the order of their ids."""
        return self.rows(
            "SELECT * FROM sync_jobs WHERE %s::text IS NULL OR partition_key = %s ORDER BY job_id",
            partition_key,
            partition_key,
        )

    def job(self, job_id: UUID) -> Row:
        """One job."""
        return self.row("SELECT * FROM sync_jobs WHERE job_id = %s", job_id)

    def count(self, partition_key: str | None = None) -> int:
        """How many jobs there are."""
        number: int = self.value(
            "SELECT count(*) FROM sync_jobs WHERE %s::text IS NULL OR partition_key = %s",
            partition_key,
            partition_key,
        )
        return number

    def states(self, partition_key: str | None = None) -> Mapping[str, int]:
        """The states that jobs are in, and how many in each."""
        counted = self.rows(
            "SELECT status::text, count(*) AS jobs FROM sync_jobs"
            " WHERE %s::text IS NULL OR partition_key = %s GROUP BY 1",
            partition_key,
            partition_key,
        )
        return {row["status"]: row["jobs"] for row in counted}

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """A block in which another session has the table to itself."""
        with psycopg.connect(self.url) as connection:
            connection.execute(SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(Identifier(table)))
            yield

    def everything(self) -> dict[str, list[str]]:
        """Every row of every table in TABLES that exists, as text; for comparing before and after."""
        with psycopg.connect(self.url) as connection:
            return {
                table: [
                    text
                    for (text,) in connection.execute(
                        SQL("SELECT t::text FROM {} t ORDER BY 1").format(Identifier(table))
                    )
                ]
                for table in TABLES
                if self.value("SELECT to_regclass(%s) IS NOT NULL", table)
            }
