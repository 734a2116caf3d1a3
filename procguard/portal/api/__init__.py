"""The operators' HTTP API, one module per resource: its routes, its handlers, the types of what they take and answer.
16 modules, because a resource is found by its module.

Handlers translate between HTTP and `fleet`; the rules are there. Start with `workers.py`; `resource.py` says what all
of them have in common, `openapi/document.py` makes /api/openapi.json of their declarations.
"""
