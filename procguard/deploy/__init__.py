"""Brings agents and code to hosts: `inventory` declares hosts, `ssh` connects to them, `session` communicates with the
installer there, `install` deploys.

Must not import the fleet's state; it queries the manager. Start with `install/deployer.py`.
"""
