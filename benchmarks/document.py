"""Shows the measurements: a table in Markdown and a plot in SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks.bounds import Results
from benchmarks.measure import Measured, Subject

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 720, 420, 80, 30, 60
_COLOURS = ("#444", "#06c", "#6af", "#c40", "#e90")
_BEGIN, _END = "<!-- measured -->", "<!-- end -->"
_STYLE = "text { font: 13px sans-serif; fill: #222 } .grid { stroke: #ddd } svg { background: #fff }"


def table(results: Results) -> str:
    """Returns a Markdown table: medians with their spread, and jobs per second."""
    lines = [
        "| users | subject | jobs per batch | seconds: median (least to most) | jobs/s | peak MiB |",
        "|---:|---|---:|---|---:|---:|",
    ]
    return "\n".join([*lines, *_rows(results)])


def _rows(results: Results) -> Iterator[str]:
    for users, of_size in results.items():
        for subject, measured in of_size.items():
            least, most = min(measured.seconds), max(measured.seconds)
            yield (
                f"| {users:,} | {subject.name} | {subject.batch_size} |"
                f" {measured.median_seconds:.3f} ({least:.3f} to {most:.3f}) |"
                f" {_jobs_per_second(users, measured):,.0f} | {max(measured.peak_mib):.0f} |"
            )


def _jobs_per_second(users: int, measured: Measured) -> float:
    return users / measured.median_seconds


def put_into(page: Path, tables: str) -> None:
    """Replaces the text between the two marks of a page."""
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{tables}\n\n{_END}{after}")


def plot(results: Results) -> str:
    """Returns an SVG of jobs per second over users, both axes logarithmic."""
    subjects = list(dict.fromkeys(subject for of_size in results.values() for subject in of_size))
    points = {
        subject: [
            (float(users), _jobs_per_second(users, of_size[subject]))
            for users, of_size in results.items()
            if subject in of_size
        ]
        for subject in subjects
    }
    plane = _Plane([point for line in points.values() for point in line])
    drawn = [
        part
        for subject, colour in zip(subjects, _COLOURS, strict=False)
        for part in plane.line(points[subject], colour)
    ]
    labels = [
        f'<text x="{_LEFT + 170 * at}" y="{_HEIGHT - 8}" style="fill: {colour}">{_label(subject)}</text>'
        for at, (subject, colour) in enumerate(zip(subjects, _COLOURS, strict=False))
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 160}" height="{_HEIGHT}">',
            f"<style>{_STYLE}</style>",
            '<text x="10" y="18">jobs per second</text>',
            *plane.grid(),
            *drawn,
            *labels,
            "</svg>\n",
        ]
    )


def _label(subject: Subject) -> str:
    return f"{subject.name}, {subject.batch_size} per batch"


class _Plane:
    """Maps a measured point to its place in the SVG."""

    def __init__(self, points: list[tuple[float, float]]) -> None:
        self._x = _decades([x for x, _ in points])
        self._y = _decades([y for _, y in points])

    def _place(self, x: float, y: float) -> tuple[float, float]:
        width, height = _WIDTH - _LEFT - 20, _HEIGHT - _TOP - _BOTTOM
        across = (math.log10(x) - self._x[0]) / (self._x[-1] - self._x[0])
        up = (math.log10(y) - self._y[0]) / (self._y[-1] - self._y[0])
        return _LEFT + across * width, _TOP + (1 - up) * height

    def grid(self) -> Iterator[str]:
        left, right = 10.0 ** self._x[0], 10.0 ** self._x[-1]
        low, high = 10.0 ** self._y[0], 10.0 ** self._y[-1]
        for decade in self._x:
            x, bottom = self._place(10.0**decade, low)
            yield _line((x, bottom), self._place(10.0**decade, high), 'class="grid"')
            yield f'<text x="{x - 30:.0f}" y="{bottom + 18:.0f}">{10**decade:,} users</text>'
        for decade in self._y:
            at, y = self._place(left, 10.0**decade)
            yield _line((at, y), self._place(right, 10.0**decade), 'class="grid"')
            yield f'<text x="{at - 70:.0f}" y="{y + 4:.0f}">{10**decade:,}</text>'

    def line(self, points: list[tuple[float, float]], colour: str) -> Iterator[str]:
        places = [self._place(*point) for point in points]
        for start, end in pairwise(places):
            yield _line(start, end, f'stroke="{colour}" stroke-width="2"')
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'


def _decades(values: list[float]) -> range:
    """Returns the exponents of the powers of ten around the values, at least two."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return range(low, max(high, low + 1) + 1)


def _line(start: tuple[float, float], end: tuple[float, float], style: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'
