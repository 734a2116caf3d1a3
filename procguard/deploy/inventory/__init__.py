"""Inventories as Ansible has them: forms, groups, precedence of variables, and the workers of each host.

Must not open a connection. Start with `model.py`: what an inventory means for ProcGuard; `source.py` picks the reader.
"""
