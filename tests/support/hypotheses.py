"""How many inputs a test of hypothesis tries: few in `make test`, many in `make test-fuzz`."""

import os

from hypothesis import HealthCheck, settings

INPUTS = int(os.environ.get("FUZZ_INPUTS", "1000"))


def inputs(share: float) -> settings:
    """This share of all inputs."""
    return settings(
        max_examples=round(INPUTS * share),
        # The fixtures are for all inputs of a test: none of them may change anything.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
