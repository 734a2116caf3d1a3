"""The operating system as the other packages need it: paths, processes, locks, users, control groups, disk space.

Must not import any package of `remote_agent` except `protocol`. Start with `paths.py` and `processes.py`.
18 modules, because three of them only replace packages of Python that take long to load: `lean_json.py`, `libc.py`,
`signals.py`.
"""
