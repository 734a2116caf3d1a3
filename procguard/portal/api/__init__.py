"""The operators' HTTP API, one module per resource.

Handlers translate between HTTP and `fleet`; the rules are there. Start with `fleet.py` (workers and hosts);
`openapi/routes.py` is the table of all routes, `requests.py` the types of what comes in.
"""
