"""Syncs a project's code from this machine to hosts. Start with `transfer.py`.

Must not start or stop workers.
"""
