"""Keeps the ledger right and small: reconcile and prune."""
