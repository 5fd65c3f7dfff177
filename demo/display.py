"""Shows the jobs of a run by state: live on a terminal, otherwise as a plain line every two seconds."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demo.stores import STATES, Run

PLAIN_LINE_SECONDS = 2.0
STYLES = {
    "PENDING": "yellow",
    "RUNNING": "cyan",
    "COMPLETED": "green",
    "FAILED": "red",
    "SKIPPED": "magenta",
}


class Display:
    """A context manager that shows a run. `show` may be called any number of times."""

    def __init__(self, console: Console, users: int) -> None:
        self._console = console
        self._users = users
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._next_line_at = 0.0

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, run: Run | None) -> None:
        """Shows the current state of the run."""
        title = "waiting for Beat" if run is None else run.partition_key
        jobs = dict.fromkeys(STATES, 0) if run is None else run.jobs
        if self._live is not None:
            self._live.update(Group(Text(title, style="bold"), self._bars(jobs)), refresh=True)
        elif time.monotonic() >= self._next_line_at or (run is not None and run.is_over):
            self._next_line_at = time.monotonic() + PLAIN_LINE_SECONDS
            counts = "  ".join(f"{state} {count:,}" for state, count in jobs.items() if count)
            self._console.print(f"{title}: {counts or 'no jobs yet'}")

    def _bars(self, jobs: dict[str, int]) -> Table:
        table = Table.grid(padding=(0, 1))
        for state, count in jobs.items():
            bar = ProgressBar(
                total=self._users,
                completed=count,
                width=40,
                complete_style=STYLES[state],
                finished_style=STYLES[state],
            )
            table.add_row(state, bar, f"{count:>6,}")
        return table
