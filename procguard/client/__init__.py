"""The client of a manager's HTTP API, for the operator's tools and deployments.

Must not know the fleet's state or a terminal. Start with `api.py`; `discovery.py` finds this user's manager on this
machine, `coming_up.py` waits for started workers.
"""
