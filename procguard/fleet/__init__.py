"""The state of the fleet and every decision about it. Knows neither HTTP nor SSH.

Start with `fleet.py`, which composes the services that alone change the state, and `state.py`, which owns the tables
and makes changes durable; then the packages by topic. `leases.py` records what was granted to whom.
"""
