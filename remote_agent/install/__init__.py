"""Installs, upgrades, rolls back, starts and removes an agent on this host. Runs from memory or from a release.

Must not know the manager. Start with `installer.py`; `__main__.py` is its command line and session.
"""
