"""Certificates: the manager's own CA, its server certificate, and a launcher's trust. Start with `certificates.py`."""
