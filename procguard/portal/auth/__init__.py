"""Authentication and authorization. Access is denied unless a rule here allows it.

Start with `gate.py`, which guards every route, then `access.py`. `audit.py` records each change with its author.
"""
