"""Log files of this host's workers: watching, shipping, searching, retention.

`shipper.py` sends bytes from the offset that the manager acknowledged last. Start there.
"""
