"""The series of /metrics, for Prometheus. Start with `exposition.py`."""
