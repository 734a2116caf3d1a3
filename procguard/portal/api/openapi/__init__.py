"""The description of the HTTP interface, GET /api/openapi.json, built from the declarations at the handlers.

Knows neither sockets nor the registry. Tests compare it with the application: every answer that a test receives has its
declared shape.
"""
