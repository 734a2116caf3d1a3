"""The hierarchy of all errors that users can see. Every message names what, where and what to do next.

ProcGuardError
├── UsageError            the call was wrong: exit code 1, HTTP 400
│   ├── ConfigError       configuration: all invalid keys together
│   └── InventoryError    inventory: file and line
├── NotFound              unknown worker, host, command id: HTTP 404
├── Conflict              the state does not allow it: HTTP 409
├── Refused               unknown caller: HTTP 401
│   └── Forbidden         known caller without the right to it: HTTP 403
├── LimitExceeded         too large, too slow or too often: HTTP 413, 408, 429
├── HostError             an action failed on one host
│   └── HostUnreachable   no SSH connection: refused, timeout, host key, auth, name
├── PartlyFailed          some hosts or workers failed: exit code 2
└── ManagerUnreachable    exit code 3
"""

from __future__ import annotations


class ProcGuardError(Exception):
    """Base of all errors. `message`: what went wrong and where. `next_step`: what to do now. `code`: a stable code for
    programs."""

    exit_code = 1
    http_status = 400
    default_code = "bad_request"

    def __init__(self, message: str, next_step: str = "", *, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.code = code or self.default_code

    def __str__(self) -> str:
        return f"{self.message}; {self.next_step}" if self.next_step else self.message


class UsageError(ProcGuardError):
    pass


class ConfigError(UsageError):
    default_code = "bad_config"


class InventoryError(UsageError):
    default_code = "bad_inventory"


class NotFound(ProcGuardError):
    http_status = 404
    default_code = "not_found"


class Conflict(ProcGuardError):
    http_status = 409
    default_code = "conflict"


class Refused(ProcGuardError):
    http_status = 401
    default_code = "unauthorized"


class Forbidden(Refused):
    http_status = 403
    default_code = "forbidden"


class LimitExceeded(ProcGuardError):
    """A limit on size, time or rate was reached. `retry_after_s`: seconds until a retry may succeed (None: never)."""

    http_status = 413
    default_code = "limit_exceeded"

    def __init__(
        self, message: str, next_step: str = "", *, status: int, code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, next_step, code=code)
        self.http_status = status
        self.retry_after_s = retry_after_s

    @classmethod
    def for_now(cls, message: str, next_step: str, retry_after_s: float, code: str = "busy") -> LimitExceeded:
        """A 429 error: the same request may succeed after `retry_after_s` seconds."""
        return cls(message, next_step, status=429, code=code, retry_after_s=retry_after_s)


class HostError(ProcGuardError):
    exit_code = 2
    default_code = "host_failed"


class HostUnreachable(HostError):
    default_code = "host_unreachable"


class PartlyFailed(ProcGuardError):
    exit_code = 2
    default_code = "partly_failed"


class ManagerUnreachable(ProcGuardError):
    exit_code = 3
    default_code = "manager_unreachable"
