"""The records the fleet consists of, their epochs and settings, and the clock. Plain data without decisions.

Must not import any other part of `fleet`, except what records hold. Start with `records.py`.
"""
