"""`make demo`: one day's run on real parts, from Beat's ring to 1,000 completed jobs."""
