"""The fleet's records, their epochs and settings, and the clock. Plain data without decisions.

Must not import any other part of `fleet`, except what records contain. Start with `records.py`.
"""
