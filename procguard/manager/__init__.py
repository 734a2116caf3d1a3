"""One manager process: wiring, daemon, service, demo, loops and the liveness signal to the outside.

The only package that knows all the others. It decides nothing about the fleet. Start with `app.py`, which creates every
part and connects them; `daemon.py` holds one manager per state.
"""
