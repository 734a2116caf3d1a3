"""The manager's configuration: keys, defaults, bounds, loading, and every mistake reported with its place.

Must not know what the values are used for. Start with `schema.py`, which declares each key; `loader.py` reads the file,
`errors.py` phrases what is wrong in it.
"""
