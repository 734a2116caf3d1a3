"""Ansible inventories: formats, groups, precedence of variables, and the workers of each host.

Must not open connections. Start with `model.py`, which interprets an inventory for ProcGuard; `source.py` selects the
reader.
"""
