"""The manager's configuration: keys, defaults, bounds, loading, and errors with their location.

Must not know what the values are used for. Start with `schema.py`, which declares the keys; `checks.py` says what a
value must look like, `loader.py` reads the file, `errors.py` formats errors.
"""
