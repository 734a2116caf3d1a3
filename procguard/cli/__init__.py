"""The operator's commands: `invoke X` in a checkout, `procguard X` once installed. 16 modules, because each is one
topic of the overview.

Reads arguments, calls the manager or a deployment, prints, and turns errors into exit codes; decides nothing. Start
with `app.py`, which collects the commands; `task.py` is what all of them share, `output/` the tables that they print.
"""
