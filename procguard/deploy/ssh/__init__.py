"""SSH to one host: connections, keys, credentials, host keys, and the limit of concurrent connections.

Must not know what a connection is used for. Start with `connection.py`.
"""
