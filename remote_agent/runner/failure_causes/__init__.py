"""Why an attempt failed: a cause, and the line that proves it. Imported only after an attempt that failed by itself.

Start with `proof.py` (`of_attempt`); `decision.py` decides from lines and exit facts, `patterns.py` is the table of
texts that prove a cause. Must not know the worker's state or the restart policy. Bytes, lines and time are bounded;
texts are found by plain searches in linear time.
"""
