"""The HTTP server: parsing, limits, deadlines, connections, WebSockets, and the fast path for heartbeats.

Must not know what a request means. Start with `server.py`.
"""
