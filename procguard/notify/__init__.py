"""Notifications: classifies events as alerts, groups and formats them, and sends them.

alerts.py and formats.py are pure; transport.py sends by HTTP and SMTP; notifier.py runs a loop for each target.
"""
