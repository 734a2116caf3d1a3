"""The zmq channel: the same calls over ROUTER/DEALER sockets with CURVE. Start with `channel.py`."""
