"""A project's code and other files between this machine and hosts. Start with `transfer.py`.

Must not start or stop workers.
"""
