"""Workers: deployment, commands, placement, selectors, purge, and their views.

Must not decide what follows a failure (`recovery`). Start with `deployment.py` and `command_queue.py`.
"""
