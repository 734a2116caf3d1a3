"""One manager process: wiring, daemon, service, demo, loops, and the external liveness signal.

The only package that knows all others. It decides nothing about the fleet. Start with `app.py`, which creates and
connects all parts; `daemon.py` ensures one manager per state.
"""
