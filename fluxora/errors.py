"""Every error that Fluxora raises, drawn once.

::

    FluxoraError(code, retryable)
      ConfigError                                   the configuration is wrong; the start stops
      ProtocolError
        DecodeError                                 the bytes are wrong (theirs)
        InvariantError                              a rule of our own is broken (ours)
        AmountError                                 a decimal amount is wrong; carries its field code
      SourceError                                   the ledger's side; `failure` names the class in /health
        SourceUnavailable *                         unreachable, throttled, failing
        LedgerGap *                                 ledgers are missing between two that were seen
        HistoryLost                                 the node pruned what we still need
        ChainDiverged                               another network or another history than ours
      StorageError
        StorageUnavailable *                        PostgreSQL cannot answer now
        LeaseLost *                                 another replica ingests
        Resync *                                    memory may differ from the database: start from the stored cursor
        MigrationMismatch                           the schema is not ours
        TooManyEndpoints                            there are as many webhook endpoints as there may be
      RequestError(status)                          a client's request cannot be served as asked
        BadRequest InvalidJson Unauthorized Forbidden NotFound MethodNotAllowed NotAcceptable RequestTimeout
        Conflict ChainManaged IdempotencyConflict PayloadTooLarge UnsupportedMediaType UpgradeRequired
        TooManyRequests Unavailable *
      FollowError                                   a client of the live log cannot go on
        FollowRefused                               the server does not let it, or does not let it any more
        FollowReset                                 what was missed cannot be told whole
      SupervisionError
        RestartIntensityExceeded                    an actor keeps crashing
        StartTimeout                                an actor did not come up in time

``*`` marks what may be tried again unchanged. An actor that ends with such an error is started again without counting
it as a crash; every other error counts.
"""

from __future__ import annotations

from typing import ClassVar


class FluxoraError(Exception):
    """Root of the tree; `code` is stable and machine-readable, `retryable` says whether a later try may do."""

    code: ClassVar[str] = "FLUXORA_ERROR"
    retryable: ClassVar[bool] = False


class ConfigError(FluxoraError):
    """The configuration is wrong. The message is one line that names the variable and says what it takes."""

    code = "CONFIG_ERROR"


class ProtocolError(FluxoraError):
    """Abstract: bytes or values break a protocol's rules."""

    code = "PROTOCOL_ERROR"


class DecodeError(ProtocolError):
    """Bytes from outside are not what they claim to be."""

    code = "DECODE_ERROR"


class InvariantError(ProtocolError):
    """A rule that our own code guarantees is broken: a defect of ours."""

    code = "INVARIANT_ERROR"


class AmountError(ProtocolError):
    """A decimal amount at the boundary is wrong; `field_code` is one of the four DECIMAL_* codes that clients see."""

    code = "AMOUNT_ERROR"

    def __init__(self, field_code: str, message: str) -> None:
        super().__init__(message)
        self.field_code = field_code


class SourceError(FluxoraError):
    """The ledger's side failed; `failure` is the class shown in /health, `retry_after_s` what the other side asks."""

    code = "SOURCE_ERROR"

    def __init__(self, failure: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.retry_after_s = retry_after_s


class SourceUnavailable(SourceError):
    """The node cannot be reached, throttles, fails or answers garbage: another endpoint or a later try may do."""

    code = "SOURCE_UNAVAILABLE"
    retryable = True


class LedgerGap(SourceError):
    """Ledgers are missing between two that were seen; they must be fetched before going on."""

    code = "LEDGER_GAP"
    retryable = True


class HistoryLost(SourceError):
    """The node has pruned ledgers that are not recorded yet. Nothing is skipped: ingest stalls until one has them."""

    code = "HISTORY_LOST"


class ChainDiverged(SourceError):
    """The node serves another network, or a history that has no common ledger with ours."""

    code = "CHAIN_DIVERGED"


class StorageError(FluxoraError):
    """PostgreSQL's side."""

    code = "STORAGE_ERROR"


class StorageUnavailable(StorageError):
    """PostgreSQL cannot answer now; nothing was half done."""

    code = "STORAGE_UNAVAILABLE"
    retryable = True


class LeaseLost(StorageError):
    """Another replica has taken the ingest lease; this one must not write chain data until it holds the lease again."""

    code = "LEASE_LOST"
    retryable = True


class Resync(StorageError):
    """Nobody knows whether the last commit went through; what is in memory is dropped and the stored cursor decides."""

    code = "RESYNC"
    retryable = True


class MigrationMismatch(StorageError):
    """An applied migration differs from the file of its number, or the database is newer than this program."""

    code = "MIGRATION_MISMATCH"


class TooManyEndpoints(StorageError):
    """There are as many webhook endpoints as the configuration allows; the message says what helps."""

    code = "TOO_MANY_ENDPOINTS"


class FollowError(FluxoraError):
    """Abstract: whoever follows the live log cannot go on by itself."""

    code = "FOLLOW_ERROR"


class FollowRefused(FollowError):
    """The server does not let this client follow, or not any more; the message says what would help."""

    code = "FOLLOW_REFUSED"


class FollowReset(FollowError):
    """What was missed cannot be told whole: the state is to be read by REST, and followed again from `position`.

    `after` is where the client was. Either is None where it is not known.
    """

    code = "FOLLOW_RESET"

    def __init__(self, reason: str, *, position: str | None = None, after: int | None = None) -> None:
        was = "" if after is None else f" What follows position {after} cannot be told whole."
        then = "" if position is None else f", then follow it from position {position} on"
        super().__init__(f"{reason}.{was} Read the log or the state by REST{then}")
        self.reason = reason
        self.position = position
        self.after = after


class SupervisionError(FluxoraError):
    """The actor tree cannot go on."""

    code = "SUPERVISION_ERROR"


class RestartIntensityExceeded(SupervisionError):
    """An actor (or a group of them) crashed more often than the supervisor allows."""

    code = "RESTART_INTENSITY_EXCEEDED"


class StartTimeout(SupervisionError):
    """An actor did not report that it can serve within its start budget."""

    code = "START_TIMEOUT"


class RequestError(FluxoraError):
    """A client's request cannot be served as asked; `status`, `code` and `details` become the answer."""

    code = "INTERNAL_ERROR"
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        details: list[tuple[str, str, str]] | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.details = details  # (field, code, message)
        self.headers = headers


class BadRequest(RequestError):
    """400: a field is wrong; every wrong one is in `details`."""

    code = "VALIDATION_ERROR"
    status = 400


class InvalidJson(RequestError):
    """400: the body is not JSON within the bounds (UTF-8, depth, no duplicate keys, no NaN)."""

    code = "INVALID_JSON"
    status = 400


class Unauthorized(RequestError):
    """401: a credential is missing or wrong."""

    code = "UNAUTHORIZED"
    status = 401


class Forbidden(RequestError):
    """403: the credential is good and does not allow this."""

    code = "FORBIDDEN"
    status = 403


class NotFound(RequestError):
    """404."""

    code = "NOT_FOUND"
    status = 404


class MethodNotAllowed(RequestError):
    """405, with Allow."""

    code = "METHOD_NOT_ALLOWED"
    status = 405


class NotAcceptable(RequestError):
    """406: the client takes none of the media types that the route has."""

    code = "NOT_ACCEPTABLE"
    status = 406


class RequestTimeout(RequestError):
    """408: the body did not arrive in time."""

    code = "REQUEST_TIMEOUT"
    status = 408


class Conflict(RequestError):
    """409: the resource is not in a state that allows this, or the same request is in flight."""

    code = "CONFLICT"
    status = 409


class ChainManaged(RequestError):
    """409: the stream lives on the chain, which alone can change it."""

    code = "CHAIN_MANAGED"
    status = 409


class IdempotencyConflict(RequestError):
    """422: the idempotency key was used with another request."""

    code = "IDEMPOTENCY_CONFLICT"
    status = 422


class PayloadTooLarge(RequestError):
    """413: refused before it is parsed."""

    code = "PAYLOAD_TOO_LARGE"
    status = 413


class UnsupportedMediaType(RequestError):
    """415: the body is not application/json."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


class UpgradeRequired(RequestError):
    """426, with Upgrade: the path speaks another protocol than HTTP, or another version of it."""

    code = "UPGRADE_REQUIRED"
    status = 426


class TooManyRequests(RequestError):
    """429, with Retry-After: over the caller's rate limit, or over its number of WebSockets."""

    code = "RATE_LIMIT_EXCEEDED"
    status = 429
    retryable = True


class Unavailable(RequestError):
    """503, with Retry-After: a dependency cannot answer now."""

    code = "SERVICE_UNAVAILABLE"
    status = 503
    retryable = True
