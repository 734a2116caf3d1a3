"""The operator's commands: `invoke X` in a checkout, `procguard X` once installed. One module per topic.

Reads arguments, calls the manager or a deployment, prints, and turns errors into exit codes; decides nothing. Start
with `app.py`, which collects the commands; `task.py` is what all of them share, `output/` the tables that they print.
"""
