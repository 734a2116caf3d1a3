"""Jinja as in Ansible: lazily rendered values, Ansible's functions, and a process with limits.

Must not know how inventories are read. Start with `renderer.py`; `functions.py` has Ansible's additions to Jinja,
`contained.py` the limits.
"""
