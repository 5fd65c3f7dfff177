"""Ratios of what was measured, each beside its bound. It measures nothing."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import ge, le

from benchmarks.measure import Measured, Subject
from benchmarks.standing import Standing

Results = Mapping[int, Mapping[Subject, Measured]]

FLOOR = Subject("floor", 1000)
TICK = Subject("tick", 1000)
SMALL_BATCHES = Subject("tick", 200)
_JUDGED_USERS = 100_000
"""Fewer are measured, and shown, for the memory and to see what a tick costs before its first job."""
IDIOMS = (Subject("group", 200), Subject("group-in-batch", 200))


@dataclass(frozen=True)
class Bound:
    """One line of the table. kept: whether `value` is on the right side of `limit`."""

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


def table(results: Results, standing: Standing | None) -> str:
    """Markdown: what must be shown, the bound, the figure, whether it is kept."""
    lines = ["| must show | bound | measured | kept |", "|---|---|---|---|"]
    return "\n".join([*lines, *map(str, [*_of_all(results), *_of_standing(standing)])])


def of_ci(results: Results) -> int:
    """1 where tick / floor is under 0.6, or the tick under 20 times the plain idiom; else 0."""
    asked = [
        bound
        for users in results
        for bound in _of_size(results[users], users, floor=0.6, idiom=20)
        if IDIOMS[1].name not in bound.what
    ]
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
        yield Bound(f"the same, more than with {smallest:,} users", growth, le, 10, "MiB")
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


def _of_standing(standing: Standing | None) -> Iterator[Bound]:
    if standing is None:
        return
    yield Bound(
        f"reconcile, nothing to do, {standing.finished_jobs:,} jobs of 10 runs",
        standing.reconcile_ms,
        *(le, 100, "ms"),
    )
    share = standing.jobs_per_second / standing.tasks_per_second
    yield Bound("worker: jobs with an empty handler / empty Celery tasks", share, ge, 0.6)


def _of_size(
    measured: Mapping[Subject, Measured], users: int, *, floor: float, idiom: float
) -> Iterator[Bound]:
    """Speed by speed: the other's time by the tick's."""
    seconds = measured[TICK].median_seconds
    yield Bound(f"tick / floor, {users:,} users", measured[FLOOR].median_seconds / seconds, ge, floor)
    for subject in IDIOMS:
        if subject in measured:
            faster = measured[subject].median_seconds / seconds
            yield Bound(f"tick / {subject.name}, {users:,} users", faster, ge, idiom)
