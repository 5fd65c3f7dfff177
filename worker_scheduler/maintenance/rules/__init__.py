"""The rules of reconcile, one module per subject; `reconciler.RULES` lists them in their order.

A rule is a function that takes the context and returns how many cases it put right. It may run at any time,
and in several processes at once: each move is an UPDATE that names the state it starts from, and a message
is published only after its job or batch is claimed. docs/reliability.md has the bound in time of each rule.
"""
