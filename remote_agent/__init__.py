"""What runs on the hosts: agent, runners and their installer. Standard library only, Python 3.9 or later.

Imports nothing from `procguard`; the manager imports `remote_agent.protocol` and `remote_agent.states` from here.
"""
