"""`make demo`: one day's run with real processes, from Beat's trigger to 1,000 completed jobs."""
