"""What the operator's tools and deployments ask a manager, over its HTTP interface.

Must not know the fleet's state or a terminal. Start with `api.py`; `discovery.py` finds the manager of this user on
this machine, `coming_up.py` waits for workers that were started.
"""
