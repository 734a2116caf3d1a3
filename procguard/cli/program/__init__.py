"""What every command shares: how it is declared, found, parsed, helped with and ended. Knows no command and no manager.

Start with `command.py`, the declaration; `parser.py` reads arguments by it, `process.py` turns errors into exit codes,
`invoke_form.py` makes invoke's tasks of the same declarations.
"""
