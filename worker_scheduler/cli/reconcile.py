"""`scheduler reconcile`: one pass over what a crash, an outage or a lost message left behind."""

from __future__ import annotations

from worker_scheduler import wiring
from worker_scheduler.cli import shared
from worker_scheduler.cli.output import print_faults, print_json, print_line, progress
from worker_scheduler.cli.shared import AsJson
from worker_scheduler.maintenance import reconciler


def reconcile(as_json: AsJson = False) -> int:
    """Put right what a crash, an outage or a lost message left behind. Safe to run at any time."""
    shared.load_and_log()
    with progress() as on_progress, wiring.tick_context(shared.requested_by(), on_progress) as context:
        result = reconciler.reconcile(context)
    for error in result.errors:
        print_faults(error)
    if as_json:
        print_json(result.as_json())
    else:
        found = [f"{name.replace('_', ' ')}: {n}" for name, n in result.put_right.items() if n]
        print_line("; ".join(found) or "nothing to put right")
    return result.exit_status
