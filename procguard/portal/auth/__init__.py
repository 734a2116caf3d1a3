"""Who is asking, and whether they may. Everything is refused unless a rule here allows it.

Start with `gate.py`, which stands in front of every route, then `access.py`. `audit.py` records each change with its
author.
"""
