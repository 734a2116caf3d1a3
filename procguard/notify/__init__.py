"""Telling people: which events are alerts, how they are grouped, how each service wants them, and sending them.

alerts.py and formats.py are pure; transport.py speaks HTTP and SMTP; notifier.py is the loop of each target.
"""
