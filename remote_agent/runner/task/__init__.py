"""One worker's attempts from the first start until it is settled: phases, starts, ends, and requests of others.

Must not know sockets, signals of the runner itself, or the agent. Start with `phases.py`, then `task_runner.py`.
"""
