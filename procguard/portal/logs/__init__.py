"""The workers' logs on the manager: storage, index, reading, following, searching, retention.

Must not know HTTP or who may read. Start with `store.py`.
"""
