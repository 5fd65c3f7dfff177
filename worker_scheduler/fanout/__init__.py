"""A tick: which days are due, which users are in a run, how the run is planned and dispatched."""
