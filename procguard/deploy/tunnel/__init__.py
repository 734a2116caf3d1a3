"""The process that keeps tunnels to hosts that cannot reach the manager, and its client.

Start with `process.py`; `manager/tunnels.py` decides which hosts need a tunnel.
"""
