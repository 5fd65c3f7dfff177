"""All SQL of worker_scheduler, by table; no other package builds SQL, and none here knows Celery."""
