"""The published description of the HTTP interface: GET /api/openapi.json, made of the types that check what comes in.

`routes.py` is the table of routes, `answers/` the shapes of answers, `document.py` makes OpenAPI 3.1 of them. Knows
neither sockets nor the registry. Tests hold it to the truth: each route of the application is in it and the other way
round, and every answer that a test gets has its shape.
"""
