"""The manager side: deploys agents, supervises the fleet and serves the portal.

Programs use `procguard.Client` and the errors that it raises. Both are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procguard.client.client import Client
    from procguard.errors import ManagerUnreachable, NotFound, ProcGuardError, Refused

__version__ = "0.2.0"
__all__ = ["Client", "ManagerUnreachable", "NotFound", "ProcGuardError", "Refused", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from procguard.client.client import Client  # noqa: PLC0415

        return Client
    if name in __all__:
        from procguard import errors  # noqa: PLC0415

        return getattr(errors, name)
    raise AttributeError(f"module 'procguard' has no attribute {name!r}")
