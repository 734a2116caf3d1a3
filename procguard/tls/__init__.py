"""Certificates: the manager's own CA, what it serves, and which one a launcher trusts. Start with `certificates.py`."""
