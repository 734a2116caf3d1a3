"""Python processes: event loop, garbage collection, known vulnerabilities of the interpreter, helper processes.

Knows nothing of ProcGuard; every other package may import it. Start with `cooperative.py`.
"""
