"""The description of the HTTP interface, GET /api/openapi.json, built from the types that check requests.

`routes.py` is the table of routes, `answers.py` the shapes of answers, `document.py` makes OpenAPI 3.1 of them. Knows
neither sockets nor the registry. Tests compare it with the application: each route is in both, and every answer that a
test receives has its declared shape.
"""
