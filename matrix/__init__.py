"""The tests against each server that is supported; `make test` alone covers the newest ones."""
