"""The managing machine: deploys agents, supervises the fleet, serves the portal."""

__version__ = "0.2.0"
