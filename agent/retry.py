"""What a failed call to Supabase means, in one place, and how long to wait before the next.

Every call of docs/protocol.md is idempotent, so the only question is whether repeating it can help.
"""

import random
from collections.abc import Iterator
from typing import Final, Literal, assert_never

Verdict = Literal["retry", "sign_in", "refused"]

STATEMENT_TIMEOUT: Final = "57014"
#: SQLSTATEs that a repeated transaction can survive: serialization, deadlock, lock and statement time-outs
_RETRY_CODES: Final = frozenset({"40001", "40P01", "55P03", STATEMENT_TIMEOUT})
#: classes: 08 connection, 53 resources (too many connections), 57P operator (restart, failover), 58 system
_RETRY_CLASSES: Final = ("08", "53", "57P", "58")
#: PostgREST could not reach its database, or its schema cache is being reloaded (202: it does not know the function yet)
_RETRY_POSTGREST: Final = frozenset({"PGRST000", "PGRST001", "PGRST002", "PGRST003", "PGRST202"})
#: PostgREST refuses the token itself
_TOKEN_CODES: Final = frozenset({"PGRST300", "PGRST301", "PGRST302", "PGRST303"})
#: gateways and load balancers; 52x and 530 are Cloudflare, 544 the connection pool of a hosted project
_RETRY_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 530, 544})


def classify(status: int, code: str | None) -> Verdict:
    """Judge an answer that is not 2xx by its HTTP status and its `code` (SQLSTATE, PGRSTnnn or none).

    A code outranks the status: PostgREST maps many SQLSTATEs to 500 and 503.
    """
    if code:
        if code in _TOKEN_CODES:
            return "sign_in"
        if code in _RETRY_CODES or code in _RETRY_POSTGREST or code.startswith(_RETRY_CLASSES):
            return "retry"
        if len(code) == 5 or code.startswith("PGRST"):
            return "refused"
    if status == 401:
        return "sign_in"
    return "retry" if status in _RETRY_STATUSES else "refused"


def classify_auth(status: int) -> Literal["retry", "refused"]:
    """Judge an answer of the Auth service or of the enrol function: only 4xx are definitive."""
    return "refused" if 400 <= status < 500 and status not in _RETRY_STATUSES else "retry"


def backoff(first: float, cap: float, rng: random.Random | None = None) -> Iterator[float]:
    """Endless waits in seconds: uniformly within a window that doubles from `first` up to `cap`.

    The lower half of a window is left out, so that a farm that lost the same server spreads out without hammering it.
    """
    source = rng or random
    window = first
    while True:
        yield source.uniform(window / 2, window)
        window = min(window * 2, cap)


class CallFailed(Exception):
    """A call to Supabase did not give an answer that could be used."""

    def __init__(self, call: str, message: str) -> None:
        super().__init__(f"{call}: {message}")
        self.call = call
        self.message = message


class Refused(CallFailed):
    """Definitive: repeating the same call is useless. `code` is a TCnnn of docs/errors.md, a SQLSTATE or None."""

    def __init__(
        self, call: str, message: str, *, code: str | None = None, status: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(call, f"{code or status}: {message}" + (f" ({hint})" if hint else ""))
        self.code = code
        self.status = status


class Unreachable(CallFailed):
    """Supabase did not answer, or not now. The call may have been carried out; it is safe to repeat it."""


class CutOff(Unreachable):
    """The database cancelled the statement after its time (57014): nothing was done, and less at once may fit."""


class SignInRefused(Refused):
    """The agent's own credentials were refused: its identity is wrong, or its VPS was retired."""


def failure_of(call: str, status: int, code: str | None, message: str, hint: str | None = None) -> CallFailed:
    """The exception for an answer that is not 2xx, after token renewal was tried."""
    verdict = classify(status, code)
    match verdict:
        case "retry":
            kind = CutOff if code == STATEMENT_TIMEOUT else Unreachable
            return kind(call, f"HTTP {status} {code or ''} {message}".strip())
        case "sign_in" | "refused":
            return Refused(call, message, code=code, status=status, hint=hint)
        case _:
            assert_never(verdict)
