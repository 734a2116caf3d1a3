"""The operator's commands: `invoke X` in a checkout, `procguard X` when installed. 16 modules, because each is
one topic of the overview.

Reads arguments, calls the manager or a deployment, prints results, and maps errors to exit codes. Decides nothing.
Start with `app.py`, which finds commands; `program/` is what all of them share, `output/` the tables that they print.
"""
