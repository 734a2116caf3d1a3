"""Recovery from silent hosts and failed workers.

`monitor.py` detects, `policy.py` decides (a pure table), `handler.py` acts, `reassignment.py` moves workers to other
hosts. Start with `policy.py`.
"""
