"""Runs the tests against each supported server; `make test` covers only the newest ones."""
