"""Communication between the fleet and its agents: heartbeats and assignments, enrolment, credentials, maintenance,
resync.

Must not know which channel carries a message. Start with `heartbeat.py`: what a heartbeat changes and what the reply
contains.
"""
