"""Every table of the ledger: importing this module registers them all in `metadata`."""

from worker_scheduler.ledger import control_tables, upkeep_tables
from worker_scheduler.ledger.tables import metadata

__all__ = ["control_tables", "metadata", "upkeep_tables"]
