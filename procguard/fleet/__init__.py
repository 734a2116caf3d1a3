"""The state of the fleet and every decision about it. Knows neither HTTP nor SSH.

Start with `registry.py`, the sole writer of the state, and `state.py`, which owns the tables and makes changes durable;
then the packages by topic. `leases.py` records what was granted to whom.
"""
