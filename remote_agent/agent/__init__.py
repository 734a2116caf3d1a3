"""One host: the main loop, its workers, commands, journal, settings.

Must not watch a process itself: that is the runner's task. Start with `agent.py`; `wiring.py` creates its parts,
`worker.py` is one worker, `session.py` the session with the manager, `launcher.py` an agent started by hand.
"""
