"""Batch operations: one verb for all the workers that a selector matches.

`model.py` holds the rules and records (pure), `controller.py` carries an operation out; previews and their confirmation
tokens stand beside it. Start with `model.py`.
"""
