"""Measures how fast a tick is, compared with the stores' own floor and with Celery's usual idioms."""
