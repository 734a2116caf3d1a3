"""Health checks, signs of a hang, and evidence taken before a restart. Start with `checks.py`."""
