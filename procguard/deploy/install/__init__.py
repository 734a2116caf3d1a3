"""Deploys, upgrades, rolls back and removes agents: waves over hosts, one session per host.

Start with `deployer.py`; `helper.py` is the process in which the manager itself does this, one host at a time.
"""
