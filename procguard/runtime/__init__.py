"""Python processes: sharing the event loop, garbage collection, known holes of this interpreter, helper processes.

Knows nothing of ProcGuard; every other package may import it. Start with `cooperative.py`.
"""
