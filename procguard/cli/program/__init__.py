"""The common parts of all commands: declaration, parsing, help and exit codes. Knows no command and no manager.

Start with `command.py`, the declaration; `parser.py` parses arguments by it, `process.py` maps errors to exit codes,
and `invoke_form.py` creates invoke's tasks from the same declarations.
"""
