"""The manager's own greenlets. Each owns when something happens, never what; the decisions are in `fleet`."""
