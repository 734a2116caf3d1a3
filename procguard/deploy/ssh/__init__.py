"""SSH to one host: connections, keys, credentials, host keys, and how many connections there may be at once.

Must not know what is done over a connection. Start with `connection.py`.
"""
