"""From a token to claims, with hosted's texts for every kind of failure."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.stack.realtime.errors import TokenExpired, TokenInvalid

Verify = Callable[[str], Mapping[str, object]]


class Refused(Exception):
    """A join, handshake or message is refused. `code` and text are hosted's; `disconnect` ends the whole socket."""

    def __init__(self, code: str, text: str, *, disconnect: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.disconnect = disconnect

    @property
    def reason(self) -> str:
        return f"{self.code}: {self}"


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified token. `expires_at` is Unix seconds, None for an `sb_…` key (those do not expire)."""

    token: str
    claims: Mapping[str, object]
    expires_at: float | None

    def seconds_left(self) -> float | None:
        return None if self.expires_at is None else self.expires_at - time.time()


def is_api_key(token: str) -> bool:
    """Whether it is an `sb_publishable_…` or `sb_secret_…` key. They open the socket; in messages they are ignored."""
    return token.startswith("sb_")


def identify(verify: Verify, token: str) -> Identity:
    """Verify a token. Raises Refused with hosted's code and text."""
    try:
        claims = verify(token)
    except TokenExpired as error:
        raise Refused("InvalidJWTToken", expired_text(error.seconds_ago)) from error
    except TokenInvalid as error:
        if is_api_key(token) or token.count(".") != 2:
            raise Refused("MalformedJWT", "The token provided is not a valid JWT") from error
        raise Refused("JwtSignatureError", "Failed to validate JWT signature") from error
    expires = claims.get("exp")
    if "role" not in claims or (expires is None and not is_api_key(token)):
        raise Refused("InvalidJWTToken", "Fields `role` and `exp` are required in JWT")
    return Identity(token, claims, float(expires) if isinstance(expires, int | float) else None)


def expired_text(seconds_ago: float) -> str:
    return f"Token has expired {int(seconds_ago)} seconds ago"
