"""What becomes of a job in each of Celery's pools, whatever its handler does: `make test-pools`."""
