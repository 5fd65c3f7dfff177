"""What the benchmarks work with and say; the measuring itself is `make bench`."""

from datetime import UTC, datetime

from benchmarks import bounds, standing
from benchmarks.measure import Measured
from benchmarks.sites import DAY


def test_the_day_that_is_measured_is_none_of_those_that_have_ended() -> None:
    """Else reconcile is measured without an open job."""
    assert DAY not in {at.date() for at in standing.days_before(datetime.now(UTC))}


def test_every_ratio_is_called_by_its_own_name() -> None:
    """Speed by speed: a tick that takes half the floor's time is twice as fast."""
    seconds = {bounds.FLOOR: 2.0, bounds.TICK: 1.0, bounds.SMALL_BATCHES: 4.0, bounds.IDIOMS[0]: 50.0}
    measured = {
        subject: Measured([took], [90.0], [100.0], [0.1], [10.0]) for subject, took in seconds.items()
    }
    table = bounds.table({100_000: measured}, None)
    assert "| tick / floor, 100,000 users | ≥ 1 | 2.00 | yes |" in table
    assert "| tick / floor, batches of 200, 100,000 users | ≥ 0.7 | 0.50 | **no** |" in table
    assert "| tick / group, 100,000 users | ≥ 50 | 50.00 | yes |" in table
