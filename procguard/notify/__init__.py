"""Notifications: which events are alerts, how they are grouped and formatted, and sending them.

alerts.py and formats.py are pure; transport.py sends by HTTP and SMTP; notifier.py has the loop of each target.
"""
