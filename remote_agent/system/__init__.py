"""The operating system as the other packages need it: paths, processes, locks, users, control groups, disk space.

Must not import any other package of `remote_agent` but `protocol`. Start with `paths.py` and `processes.py`.
"""
