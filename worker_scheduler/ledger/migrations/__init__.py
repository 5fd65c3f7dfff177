"""Alembic's migrations of the ledger; `ledger/schema.py` runs them.

They are frozen: no module here imports the tables, states or SQL of the present code.
"""
