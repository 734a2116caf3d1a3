"""The host's end of a tunnel, and the owner of a port. Start with `relay.py`; `mux.py` is used at both ends."""
