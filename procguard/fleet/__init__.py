"""The state of the fleet and all decisions about it. Knows neither HTTP nor SSH.

Start with `fleet.py`, which composes the services that change the state, and `state.py`, which owns the tables and
makes changes durable; then the packages by topic. `leases.py` records granted leases.
"""
