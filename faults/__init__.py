"""The fault suite: breaks real processes and servers at seeded moments, then checks that they recover.

`make test-faults` runs it; docs/faults.md describes it. The product has no hook for it.
"""
