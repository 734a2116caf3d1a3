"""One host: the main loop, its workers, commands, journal, settings.

Must not watch a child itself: that is the runner's. Start with `agent.py`; `wiring.py` is what it is made of,
`worker.py` one worker as the agent sees it, `session.py` the session with the manager, `launcher.py` an agent that was
started by hand.
"""
