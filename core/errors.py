"""Every error this project raises on purpose. Knows no HTTP: ``api/errors.py`` alone maps classes to statuses.

AttuneError
├── BadRequest          the request is wrong: a field, a value, a combination
├── Unauthenticated     no key, or not a good one
├── Forbidden           a good key without the right
├── QuotaExceeded       a limit of the project is reached (code names it)
├── NotFound            no such thing, or another project's
├── Conflict            the thing is in a state that does not allow this
├── TooLarge            more bytes than allowed
├── KeyReused           an idempotency key came again with another body
├── RateLimited         too often; ``retry_after`` says when
├── Unavailable         something behind the service is away; ``retry_after`` says when
├── JobError            a job's own end: code, message and param are shown in ``job.error``
└── LostAuthority       this worker no longer owns the row it is writing to
"""

from typing import ClassVar


class AttuneError(Exception):
    """Carries what a user may see: a sentence, a stable code and the full path of the field at fault."""

    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = code or self.code
        self.param = param


class BadRequest(AttuneError):
    code = "invalid_value"


class Unauthenticated(AttuneError):
    code = "invalid_api_key"


class Forbidden(AttuneError):
    code = "insufficient_permissions"


class QuotaExceeded(AttuneError):
    code = "exceeded_quota"


class NotFound(AttuneError):
    code = "not_found"


class Conflict(AttuneError):
    code = "conflict"


class TooLarge(AttuneError):
    code = "file_too_large"


class KeyReused(AttuneError):
    code = "idempotency_key_reused"


class RateLimited(AttuneError):
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(AttuneError):
    code = "unavailable"

    def __init__(self, message: str, *, retry_after: float = 2) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JobError(AttuneError):
    code = "server_error"


class LostAuthority(AttuneError):
    code = "lost_authority"
