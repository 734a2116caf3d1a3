"""Text for terminals and log files. Untrusted text never controls either.

Knows no commands and no HTTP. Start with `terminal.py`, the only module that prints; `log_format.py` does the same
for the manager's log.
"""
