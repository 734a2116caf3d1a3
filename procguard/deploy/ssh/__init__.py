"""SSH to one host: connections, keys, credentials, host keys, and the helper process that runs it for the manager.

Must not know what is done over a connection. Start with `connection.py`.
"""
