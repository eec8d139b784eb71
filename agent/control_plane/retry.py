"""Classifies failed calls to Supabase, and gives the pauses between retries.

Every call of docs/protocol.md is idempotent, so the only question is whether a retry can help.
"""

import random
from collections.abc import Iterator
from typing import Final, Literal, assert_never

Verdict = Literal["retry", "sign_in", "refused"]

STATEMENT_TIMEOUT: Final = "57014"
#: SQLSTATEs after which a retry may succeed: serialization, deadlock, lock and statement timeouts
_RETRY_CODES: Final = frozenset({"40001", "40P01", "55P03", STATEMENT_TIMEOUT})
#: classes: 08 connection, 53 resources (too many connections), 57P operator (restart, failover), 58 system
_RETRY_CLASSES: Final = ("08", "53", "57P", "58")
#: PostgREST cannot reach its database, or is reloading its schema cache (PGRST202: it does not know the function yet)
_RETRY_POSTGREST: Final = frozenset({"PGRST000", "PGRST001", "PGRST002", "PGRST003", "PGRST202"})
#: PostgREST refuses the token itself
_TOKEN_CODES: Final = frozenset({"PGRST300", "PGRST301", "PGRST302", "PGRST303"})
#: gateways and load balancers; 52x and 530 are Cloudflare, 544 the connection pool of a hosted project
_RETRY_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 530, 544})


def classify(status: int, code: str | None) -> Verdict:
    """What to do after an answer that is not 2xx, by its HTTP status and its `code` (SQLSTATE, PGRSTnnn or None).

    The code decides before the status, because PostgREST maps many SQLSTATEs to 500 and 503.
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
    # Redirects are not followed, because secrets would be sent along. One comes from a proxy, not from the call.
    return "retry" if status in _RETRY_STATUSES or 300 <= status < 400 else "refused"


def classify_auth(status: int) -> Literal["retry", "refused"]:
    """What to do after an answer of Auth or of the enrol function that is not 2xx: only 4xx are definitive."""
    return "refused" if 400 <= status < 500 and status not in _RETRY_STATUSES else "retry"


def backoff(first: float, cap: float, rng: random.Random | None = None) -> Iterator[float]:
    """Endless pauses in seconds, random in the upper half of a window that doubles from `first` up to `cap`.

    The randomness spreads the retries of a farm whose agents lost the same server at the same time.
    """
    source = rng or random
    window = first
    while True:
        yield source.uniform(window / 2, window)
        window = min(window * 2, cap)


class CallFailed(Exception):
    """A call to Supabase gave no usable answer."""

    def __init__(self, call: str, message: str) -> None:
        super().__init__(f"{call}: {message}")
        self.call = call
        self.message = message


class Refused(CallFailed):
    """Definitive: a retry of the same call is useless. `code` is a TCnnn of docs/errors.md, a SQLSTATE or None."""

    def __init__(
        self, call: str, message: str, *, code: str | None = None, status: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(call, f"{code or status}: {message}" + (f" ({hint})" if hint else ""))
        self.code = code
        self.status = status


class Unreachable(CallFailed):
    """Supabase did not answer, or is not available. The call may have been executed; repeating it is safe."""


class TimedOut(Unreachable):
    """The call was sent and got no answer in time."""


class CutOff(Unreachable):
    """The database cancelled the statement at its timeout (57014): nothing was done; a smaller call may succeed."""


class SignInRefused(Refused):
    """The agent's own credentials were refused: its identity is wrong, or its VPS is retired."""


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
