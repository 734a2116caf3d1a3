"""What both sides share: messages, worker specification, states, ids, sessions. Knows neither sockets nor files.

Start with `messages.py`.
"""
