"""The API for agents and launchers, and the channels that carry it: HTTP, zmq, mock.

A channel carries messages and never changes the fleet's state; access control is passed in by the portal. Start with
`handlers.py`, the one implementation for all channels, then `interface.py`.
"""
