"""Text for terminals and log files. Text from strangers never controls either.

Knows no commands and no HTTP. Start with `terminal.py`, the only place that prints; `log_format.py` does the same for
the manager's log.
"""
