"""One worker's attempts from the first start to the settled end: phases, starts, ends, and what others ask for.

Must not know sockets, signals of the runner itself, or the agent. Start with `phases.py`, then `task_runner.py`.
"""
