"""`python -m worker_scheduler` is the command `scheduler`."""

from worker_scheduler.cli import main

main()
