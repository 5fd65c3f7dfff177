"""How fast a tick is: against the stores' own floor, and against Celery's usual idioms."""
