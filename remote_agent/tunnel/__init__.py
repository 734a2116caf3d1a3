"""The host's end of a tunnel, and who owns a port. Start with `relay.py`; `mux.py` is used at both ends."""
