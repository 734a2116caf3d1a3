"""The operators' HTTP API, one module per resource: routes, handlers, and the types of requests and responses.
17 modules, because each resource is a module; `several.py` is a shape that two of them share.

Handlers translate between HTTP and `fleet`, which owns the rules. Start with `workers.py`; `resource.py` is common to
all modules, and `openapi/document.py` generates /api/openapi.json from their declarations.
"""
