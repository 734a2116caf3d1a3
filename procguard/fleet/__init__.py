"""The manager's mind: registry, monitor, recovery. Knows neither HTTP nor SSH."""
