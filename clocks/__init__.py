"""Hosts whose clock is wrong, played by libfaketime with real processes: `make test-clocks`."""
