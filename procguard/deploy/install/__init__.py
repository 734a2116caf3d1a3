"""Deploying, upgrading, rolling back and removing agents: waves over hosts, and one session on each.

Start with `deployer.py`; `session.py` is the conversation with the installer, `bundle.py` what is sent.
"""
