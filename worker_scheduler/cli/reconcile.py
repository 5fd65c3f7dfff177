"""`scheduler reconcile`: one pass over what a crash, an outage or a lost message left behind."""

from __future__ import annotations

from worker_scheduler import logs
from worker_scheduler.cli.output import print_faults, print_json, print_line, progress
from worker_scheduler.cli.ticks import AsJson, who
from worker_scheduler.settings import load


def reconcile(as_json: AsJson = False) -> int:
    """Put right what a crash, an outage or a lost message left behind; safe at any time."""
    logs.configure(load().log_level)
    logs.to_stderr()
    # Imported late: it makes the Celery app, which a wrong variable need not wait for.
    from worker_scheduler import reconciler, wiring  # noqa: PLC0415

    with progress() as on_progress, wiring.tick_context(who(), on_progress) as context:
        result = reconciler.reconcile(context)
    for error in result.errors:
        print_faults(error)
    if as_json:
        print_json(result.as_json())
    else:
        found = [f"{name.replace('_', ' ')}: {n}" for name, n in result.put_right.items() if n]
        print_line("; ".join(found) or "nothing to put right")
    return result.exit_status
