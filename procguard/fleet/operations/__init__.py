"""Batch operations: one command for all workers that match a selector.

`model.py` has the rules and records (pure), `controller.py` executes an operation; previews and their confirmation
tokens are beside it. Start with `model.py`.
"""
