"""The operators' HTTP API, one module per resource: routes, handlers, and the types of requests and responses.
16 modules, because each resource is a module.

Handlers translate between HTTP and `fleet`, which owns the rules. Start with `workers.py`; `resource.py` is common to
all modules, and `openapi/document.py` generates /api/openapi.json from their declarations.
"""
