"""Getting agents and code onto hosts: `inventory` says which hosts, `ssh` reaches them, `session` talks to the
installer there, `install` deploys.

Must not import the fleet's state; what it needs to know, it asks the manager. Start with `install/deployer.py`.
"""
