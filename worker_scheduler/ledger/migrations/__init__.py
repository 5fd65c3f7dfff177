"""Alembic's migrations of the ledger; `ledger/schema.py` runs them."""
