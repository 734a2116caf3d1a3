"""Jinja as Ansible has it: values rendered lazily, Ansible's functions, and a process in which that has bounds.

Must not know how inventories are read. Start with `renderer.py`; `functions.py` has what Ansible adds to Jinja,
`contained.py` the bounds.
"""
