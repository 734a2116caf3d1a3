"""The managing machine: deploys agents, supervises the fleet, serves the portal."""

__version__ = "0.1.0"
