"""One worker: attempts, restart policy, termination, leases. A separate process that outlives the agent.

Must not know the manager or the network, and must stay small. Start with `task/`; `__main__.py`
is the command that becomes the daemon, and `start.py` what it does. 16 modules: each step of an attempt and each part
of the daemon is one.
"""
