"""Health checks, and evidence taken before a restart. Start with `checks.py`."""
