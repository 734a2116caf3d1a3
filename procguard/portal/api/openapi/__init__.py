"""The OpenAPI description of the HTTP API (GET /api/openapi.json), generated from the declarations at the handlers.

Knows neither sockets nor the fleet. Tests compare it with the application: every response that a test receives must
have its declared shape.
"""
