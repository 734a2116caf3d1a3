"""Deploying, upgrading, rolling back and removing agents: waves over hosts, one session on each.

Start with `deployer.py`; `helper.py` is the process in which the manager itself does it, one host at a time.
"""
