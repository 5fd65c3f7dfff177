"""Computes ratios from the measurements, and compares each with its bound."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import ge, le

from benchmarks.measure import Measured, Subject
from benchmarks.open_jobs import OpenJobs
from benchmarks.steady_state import SteadyState

Results = Mapping[int, Mapping[Subject, Measured]]

FLOOR = Subject("floor", 1000)
TICK = Subject("tick", 1000)
SMALL_BATCHES = Subject("tick", 200)
_JUDGED_USERS = 100_000
"""Smaller sizes have no bound on speed: they show memory, and what a tick costs before its first job."""
_LONGEST_STEP_MS = 500
_LONGEST_STATEMENT_MS = 1500
"""One statement reads all open jobs of a run, to see that nothing is left to do: 1.5 ms per 1,000 jobs."""
IDIOMS = (Subject("group", 200), Subject("group-in-batch", 200))


@dataclass(frozen=True)
class Bound:
    """One line of the table. `kept` says whether `value` is on the right side of `limit`."""

    what: str
    value: float
    relation: Callable[[float, float], bool]
    limit: float
    unit: str = ""

    @property
    def kept(self) -> bool:
        return self.relation(self.value, self.limit)

    def __str__(self) -> str:
        sign = "≥" if self.relation is ge else "≤"
        unit = f" {self.unit}" if self.unit else ""
        kept = "yes" if self.kept else "**no**"
        return f"| {self.what} | {sign} {self.limit:g}{unit} | {self.value:.2f}{unit} | {kept} |"


def table(results: Results, steady: SteadyState | None, still_open: OpenJobs | None = None) -> str:
    """Returns a Markdown table: what was measured, its bound, the figure, and whether the bound is kept."""
    lines = ["| what | bound | measured | kept |", "|---|---|---|---|"]
    measured = [*_of_all(results), *_of_steady_state(steady), *_of_open_jobs(still_open)]
    return "\n".join([*lines, *map(str, measured)])


def of_ci(results: Results, still_open: OpenJobs | None = None) -> int:
    """Returns 1 if tick / floor is below 0.6, the tick is below 20 times the plain idiom, or reconcile over
    open jobs is too slow, otherwise 0.
    """
    asked = [
        bound
        for users in results
        # With so few users, statements that a tick sends once count for more: it measures 0.7.
        for bound in _of_size(results[users], users, floor=0.6, idiom=20)
        if IDIOMS[1].name not in bound.what
    ]
    asked += _of_open_jobs(still_open)
    for bound in asked:
        print(bound, file=sys.stderr)
    return 0 if all(bound.kept for bound in asked) else 1


def _of_all(results: Results) -> Iterator[Bound]:
    for users, measured in results.items():
        if users < _JUDGED_USERS:
            continue
        yield from _of_size(measured, users, floor=1.0, idiom=50)
        yield Bound(
            f"tick / floor, batches of 200, {users:,} users",
            measured[FLOOR].median_seconds / measured[SMALL_BATCHES].median_seconds,
            *(ge, 0.7),
        )
    largest, smallest = max(results), min(results)
    tick = results[largest][TICK]
    if largest > smallest:
        growth = max(tick.peak_mib) - max(results[smallest][TICK].peak_mib)
        yield Bound(f"peak memory, {largest:,} users", max(tick.peak_mib), le, 120, "MiB")
        yield Bound(f"its growth since {smallest:,} users", growth, le, 10, "MiB")
    yield Bound(
        f"first message in the queue, {largest:,} users",
        statistics.median(tick.first_message_ms),
        *(le, 250, "ms"),
    )
    if {100_000, 1_000_000} <= results.keys():
        ratio = tick.median_seconds / results[100_000][TICK].median_seconds
        yield Bound("time for 1,000,000 / time for 100,000", ratio, le, 10.5)
    yield Bound(
        f"same partition again, {largest:,} jobs", statistics.median(tick.again_seconds), le, 1.5, "s"
    )
    yield Bound(f"`scheduler status`, {largest:,} jobs", statistics.median(tick.status_ms), le, 300, "ms")


def _of_steady_state(steady: SteadyState | None) -> Iterator[Bound]:
    if steady is None:
        return
    yield Bound(
        f"reconcile, nothing to do, {steady.finished_jobs:,} jobs of 10 runs",
        steady.reconcile_ms,
        *(le, 100, "ms"),
    )
    share = steady.jobs_per_second / steady.tasks_per_second
    yield Bound("worker: jobs with an empty handler / empty Celery tasks", share, ge, 0.6)


def _of_open_jobs(still_open: OpenJobs | None) -> Iterator[Bound]:
    if still_open is None:
        return
    what = f"{still_open.lost:,} lost messages of {still_open.jobs:,} open jobs, old statistics"
    yield Bound(f"reconcile, {what}", still_open.pass_seconds, le, 60, "s")
    yield Bound("its slowest statement", still_open.slowest_ms, le, _LONGEST_STATEMENT_MS, "ms")
    for rule, ms in still_open.ms_per_1000.items():
        yield Bound(f"`{rule}`, 1,000 of these jobs", ms, le, _LONGEST_STEP_MS, "ms")


def _of_size(
    measured: Mapping[Subject, Measured], users: int, *, floor: float, idiom: float
) -> Iterator[Bound]:
    """Yields ratios of speeds: the other subject's time divided by the tick's."""
    seconds = measured[TICK].median_seconds
    yield Bound(f"tick / floor, {users:,} users", measured[FLOOR].median_seconds / seconds, ge, floor)
    for subject in IDIOMS:
        if subject in measured:
            faster = measured[subject].median_seconds / seconds
            yield Bound(f"tick / {subject.name}, {users:,} users", faster, ge, idiom)
