"""The connection to the manager: HTTP, zmq, TLS, addresses, and proof of which manager it is.

Must not know workers. Start with `client.py`.
"""
