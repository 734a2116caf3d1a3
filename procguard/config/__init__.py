"""The manager's configuration: keys, defaults, bounds, loading, and errors with their location.

Must not know what the values are used for. Start with `schema.py`, which declares the keys; `checks.py` validates
values, `loader.py` reads the file, and `errors.py` formats errors.
"""
