"""The workers' logs on the manager: storage, index, reading, following, searching, retention.

Must not know HTTP or access control. Start with `store.py`, which writes; `stored.py` reads.
"""
