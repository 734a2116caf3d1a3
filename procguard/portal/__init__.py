"""The interface for people and browsers: HTTP server, access control, API, live feed, logs, metrics and the pages.

Must not decide anything about the fleet. Start with `web_monitor.py`, which combines the parts on one port.
"""
