"""Intake: what a worker takes from the broker. A message that cannot be read is set aside, not put back.

Celery and kombu end the worker on a message of another shape than they expect, and put the message back
first, so that the next worker ends too.
"""
