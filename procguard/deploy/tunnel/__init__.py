"""The process that keeps tunnels to hosts which cannot reach the manager, and its client.

Start with `process.py`; which hosts need a tunnel is decided in `manager/tunnels.py`.
"""
