"""History: events, their causes, queries, and explanations in sentences.

Changes no state. Start with `events.py`; `explain.py` answers `invoke explain`.
"""
