"""Getting agents and code onto hosts: `inventory` says which hosts, `ssh` reaches them, `install` deploys.

Must not import the fleet's state; what it needs to know, it asks the manager. Start with `install/deployer.py`.
"""
