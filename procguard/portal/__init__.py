"""What people and browsers call: HTTP server, access control, API, live feed, logs, metrics and the pages.

Must not decide anything about the fleet. Start with `web_monitor.py`, which puts the parts together on one port.
"""
