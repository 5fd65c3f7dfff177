"""All SQL of worker_scheduler, one module per table or duty. No other package builds SQL."""
