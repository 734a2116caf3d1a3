"""What happens when a host goes silent or a worker fails.

`monitor.py` notices, `policy.py` decides (a pure table), `handler.py` acts, `reassignment.py` moves tasks to other
hosts. Start with `policy.py`.
"""
