"""Coverage-guided fuzzing of what reads the bytes of others: `invoke fuzz`. targets.py, seeds in tests/corpus/."""
