"""Sentences for people in English and Chinese. Knows texts, decides nothing. Start with `words.py`."""
