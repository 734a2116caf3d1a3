"""The host side: agent, runners and their installer. Standard library only, Python 3.9 or later.

Imports nothing from `procguard`. No `__init__` here imports anything: agent and runner load only what they use.
`protocol` is shared with the manager. Start with `agent/agent.py` and `runner/loop.py`.
"""
