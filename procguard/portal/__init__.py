"""WebMonitor: the HTTP API, access, live feed and the pages."""
