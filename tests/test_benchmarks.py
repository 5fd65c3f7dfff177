"""The benchmarks' data and tables. `make bench` runs the measurements."""

from datetime import UTC, datetime

from benchmarks import bounds, steady_state
from benchmarks.measure import Measured
from benchmarks.stores import DAY


def test_the_measured_day_is_not_one_of_the_finished_days() -> None:
    """Otherwise reconcile would be measured without open jobs."""
    assert DAY not in {at.date() for at in steady_state.days_before(datetime.now(UTC))}


def test_every_ratio_has_the_right_name() -> None:
    """Ratios are of speeds: a tick that takes half the floor's time is twice as fast."""
    seconds = {bounds.FLOOR: 2.0, bounds.TICK: 1.0, bounds.SMALL_BATCHES: 4.0, bounds.IDIOMS[0]: 50.0}
    measured = {
        subject: Measured([took], [90.0], [100.0], [0.1], [10.0]) for subject, took in seconds.items()
    }
    table = bounds.table({100_000: measured}, None)
    assert "| tick / floor, 100,000 users | ≥ 1 | 2.00 | yes |" in table
    assert "| tick / floor, batches of 200, 100,000 users | ≥ 0.7 | 0.50 | **no** |" in table
    assert "| tick / group, 100,000 users | ≥ 50 | 50.00 | yes |" in table
