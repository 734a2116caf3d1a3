"""What happened and why: events, their causes, queries over them, and explanations in sentences.

Changes no state. Start with `events.py`; `explain.py` answers `invoke explain`.
"""
