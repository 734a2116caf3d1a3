"""The Python process itself: sharing the event loop, garbage collection, known vulnerabilities of the interpreter.

Knows nothing of ProcGuard; every other package may import it. Start with `cooperative.py`.
"""
