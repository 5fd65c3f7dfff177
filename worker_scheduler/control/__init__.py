"""Steering: what an operator wants of a run or of the schedule. The same functions serve CLI and tasks.

Setting a flag is what takes effect; sweeping up afterwards is done in steps, here or by reconcile.
"""
