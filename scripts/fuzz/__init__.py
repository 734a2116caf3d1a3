"""Coverage-guided fuzzing of parsers of untrusted input: `invoke fuzz`. Targets: targets.py, seeds: tests/corpus/."""
