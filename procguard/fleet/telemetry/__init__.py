"""Measurements of workers, hosts and GPUs over time, in memory and on disk, bounded. Start with `timeseries.py`."""
