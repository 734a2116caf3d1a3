"""Why an attempt failed: a cause, and the line that proves it. Imported only after an attempt that failed by itself.

Start with `proof.py` (`of_attempt`); `decision.py` decides from lines and exit facts, `patterns.py` is the one table of
what proves what. Must not know the worker's state or the restart policy. Everything is bounded: the bytes, the lines,
the time; plain searches for texts, which take as long as the text is.
"""
