"""Greenlets of the manager. Each owns when something happens; the decisions are in `fleet`."""
