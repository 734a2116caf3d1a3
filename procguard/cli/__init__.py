"""The operator's commands: `invoke X` in a checkout, `procguard X` when installed. One module per topic.

Reads arguments, calls the manager or a deployment, prints results, and maps errors to exit codes. Decides nothing.
Start with `app.py`, which finds commands; `program/` is what all of them share, `output/` the tables that they print.
"""
