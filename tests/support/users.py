"""Makes the application's table `users`, which the scheduler only reads."""

from hashlib import md5
from uuid import UUID

import psycopg

_USERS = """
CREATE TABLE IF NOT EXISTS users (id uuid PRIMARY KEY, github_login text NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS users_github_login ON users (lower(github_login));
"""
_ROWS = """
INSERT INTO users (id, github_login)
SELECT md5('user-' || number)::uuid, 'user-' || number FROM generate_series(1, %s::int) AS number
ON CONFLICT DO NOTHING
"""


def make_users(database_url: str, count: int) -> None:
    """Adds the users 1 to `count` that do not exist yet."""
    with psycopg.connect(database_url) as connection:
        connection.execute(_USERS)
        connection.execute(_ROWS, [count])


def user_id(number: int) -> UUID:
    """The id of the n-th user of `make_users`; the ids are in no order."""
    return UUID(md5(f"user-{number}".encode()).hexdigest())


def github_login(number: int) -> str:
    """The login of the n-th user of `make_users`."""
    return f"user-{number}"
