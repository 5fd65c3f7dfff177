"""How many inputs a hypothesis test tries: few in `make test`, many in `make test-fuzz`."""

import os

from hypothesis import HealthCheck, settings

INPUTS = int(os.environ.get("FUZZ_INPUTS", "1000"))


def inputs(share: float) -> settings:
    """The hypothesis settings for this share of INPUTS."""
    return settings(
        max_examples=round(INPUTS * share),
        # All inputs of a test share its fixtures, so no input may change what they hold.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
