"""Shared by both sides: messages, worker specification, states, ids, sessions. Knows neither sockets nor files.

Start with `messages.py`.
"""
