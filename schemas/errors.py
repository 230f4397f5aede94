"""One tree of errors: each with a stable code, an HTTP status and a sentence for the person.

The sentence is safe to show: never a stack, a secret or an upstream's address.
"""

from __future__ import annotations


class SuanpanError(Exception):
    """A refusal that has an answer. Subclasses fix `code` and `status`."""

    code: str = "internal_error"
    status: int = 500
    kind: str = "server_error"
    """OpenAI's `error.type` for this class."""

    retriable: bool = True
    """False: a client that repeats the request would pay twice."""

    def __init__(self, sentence: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.retry_after_s = retry_after_s


class BadRequest(SuanpanError):
    code = "invalid_request"
    status = 400
    kind = "invalid_request_error"


class InvalidApiKey(SuanpanError):
    code = "invalid_api_key"
    status = 401
    kind = "invalid_request_error"


class MissingScope(SuanpanError):
    """The key is right, and not for this: the sentence says which scope it lacks."""

    code = "missing_scope"
    status = 403
    kind = "invalid_request_error"


class AddressNotAllowed(SuanpanError):
    """The key is right, but bound to other addresses than the caller's."""

    code = "address_not_allowed"
    status = 403
    kind = "invalid_request_error"


class InsufficientPoints(SuanpanError):
    """OpenAI's word is `insufficient_quota`; the sentence says how many points are missing."""

    code = "insufficient_quota"
    status = 402
    kind = "insufficient_quota"


class KeyQuotaSpent(InsufficientPoints):
    """The account has points, but this key may not spend them in this period."""

    code = "key_quota_spent"


class NotFound(SuanpanError):
    code = "not_found"
    status = 404
    kind = "invalid_request_error"


class ModelNotFound(SuanpanError):
    code = "model_not_found"
    status = 404
    kind = "invalid_request_error"


class Conflict(SuanpanError):
    code = "conflict"
    status = 409
    kind = "invalid_request_error"


class IdempotencyConflict(Conflict):
    """The key was used before: in flight, finished, or with another body."""

    code = "idempotency_conflict"


class CodeNotGood(SuanpanError):
    """A code nobody can use: unknown, used, expired and void ones are told apart by nobody."""

    code = "code_not_good"
    status = 404
    kind = "invalid_request_error"

    def __init__(self, *, guessed: bool) -> None:
        """`guessed`: no such code was ever issued. For counting guesses, never for an answer."""
        super().__init__("This code is unknown, used or expired.")
        self.guessed = guessed


class OtherKindOfCode(BadRequest):
    """A good code, in the place for codes of the other kind."""

    code = "other_kind_of_code"


class GiftTaken(Conflict):
    """A person takes one gift of a type."""

    code = "gift_taken"


class TooLarge(SuanpanError):
    code = "request_too_large"
    status = 413
    kind = "invalid_request_error"


class RateLimited(SuanpanError):
    """A limit of ours is reached; the sentence says which one. `kind` is OpenAI's: `requests`, or
    `tokens` where tokens are what was too much.
    """

    code = "rate_limit_exceeded"
    status = 429
    kind = "requests"

    def __init__(
        self,
        sentence: str,
        *,
        retry_after_s: int | None,
        limit: int | None = None,
        kind: str = "requests",
    ) -> None:
        """`limit`: how much is allowed; None for `retry_after_s` where waiting does not help."""
        super().__init__(sentence, retry_after_s=retry_after_s)
        self.limit = limit
        self.kind = kind
        self.retriable = retry_after_s is not None


class UpstreamAnswered(SuanpanError):
    """What a provider's refusal or failure becomes: code, status and kind are the problem's own."""

    def __init__(
        self, sentence: str, code: str, status: int, kind: str, retry_after_s: int | None
    ) -> None:
        super().__init__(sentence, retry_after_s=retry_after_s)
        self.code = code
        self.status = status
        self.kind = kind


class Unavailable(SuanpanError):
    """A part of ours is down or full: come back in `retry_after_s`."""

    code = "service_unavailable"
    status = 503
    kind = "server_error"


class SettlementPending(Unavailable):
    """The answer was made and is owed, but its charge could not be recorded: do not ask again."""

    code = "settlement_pending"
    retriable = False


class SiteProblem(SuanpanError):
    """Something the operator must put right; the sentence says what to do."""

    code = "site_problem"
    status = 500
