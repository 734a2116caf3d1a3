"""The operating system as the other packages need it: paths, processes, locks, users, control groups, disk space.

Must not import any package of `remote_agent` except `protocol`. Start with `paths.py` and `processes.py`.
19 modules, because four of them only replace parts of Python that take long to load or to run: `lean_import.py`,
`lean_json.py`, `libc.py`, `signals.py`.
"""
