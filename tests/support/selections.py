"""Chosen users, as a tick stores them before it opens their run."""

from collections.abc import Sequence
from uuid import UUID, uuid4

from sqlalchemy import Connection

from worker_scheduler.ledger import selected_users
from worker_scheduler.ledger.users import UsersRelation

USERS = UsersRelation("users")


def selection_of(connection: Connection, users: Sequence[UUID] | None) -> UUID | None:
    """Stores the users in the transaction; returns the id of their selection, None for every user."""
    if users is None:
        return None
    selection = uuid4()
    for first in range(0, len(users), selected_users.PAGE):
        selected_users.add_ids(connection, selection, USERS, users[first : first + selected_users.PAGE])
    return selection
