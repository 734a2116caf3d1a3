"""What agents and launchers call, and the adapters that carry it: HTTP, zmq, mock.

A channel carries messages and never changes the fleet's state itself; access control is passed in by the portal. Start
with `handlers.py`, one implementation for all channels, then `interface.py`.
"""
