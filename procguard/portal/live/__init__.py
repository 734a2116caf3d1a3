"""The live feed: topics, tables and their columns. Start with `hub.py`.

Shows the state and never changes it; a change is encoded once for all clients.
"""
