"""The fault suite: breaks real processes and real servers at seeded moments, and checks what is left.

`make test-faults` runs it; docs/faults.md describes it. The product has no hook for it.
"""
