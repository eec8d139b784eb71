"""API keys and JWT secret of one embedded stack: random per data folder, in a file that only the owner can read."""

import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import jwt

from agent import private_file
from agent.stack.realtime.errors import TokenExpired, TokenInvalid

ISSUER: Final = "supabase-embedded"
TEN_YEARS_SECONDS: Final = 10 * 365 * 24 * 3600
AUDIENCE: Final = "authenticated"


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """`publishable_key` acts as anon, `secret_key` as service_role; `jwt_secret` signs HS256 tokens.

    `anon_jwt` and `service_role_jwt` are the same two keys as JWTs, for clients that know only the older form.
    """

    jwt_secret: str
    publishable_key: str
    secret_key: str
    anon_jwt: str
    service_role_jwt: str

    @classmethod
    def generate(cls) -> Self:
        """Generate new random keys."""
        secret = secrets.token_hex(32)
        return cls(
            jwt_secret=secret,
            publishable_key=f"sb_publishable_{secrets.token_urlsafe(24)}",
            secret_key=f"sb_secret_{secrets.token_urlsafe(24)}",
            anon_jwt=_role_token(secret, "anon"),
            service_role_jwt=_role_token(secret, "service_role"),
        )

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read the keys from `file`; create it (mode 0600) when it is missing."""
        if file.exists():
            private_file.tighten(file)
            return cls(**json.loads(file.read_text()))
        keys = cls.generate()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump(asdict(keys), out, indent=1)
        partial.rename(file)
        return keys

    def verify(self, token: str) -> Mapping[str, object]:
        """Claims of an API key or a JWT signed by this stack. Raises TokenExpired or TokenInvalid."""
        if not token.isascii():
            raise TokenInvalid("a token is ASCII text")
        # Constant-time comparison: a local process could otherwise guess a key byte by byte.
        if secrets.compare_digest(token.encode(), self.publishable_key.encode()):
            return {"role": "anon"}
        if secrets.compare_digest(token.encode(), self.secret_key.encode()):
            return {"role": "service_role"}
        if token.startswith("sb_"):
            raise TokenInvalid("unknown API key")
        try:
            claims = jwt.decode(token, self.jwt_secret, algorithms=["HS256"], options={"verify_aud": False})
        except jwt.ExpiredSignatureError as error:
            expired = jwt.decode(token, options={"verify_signature": False}).get("exp", 0)
            raise TokenExpired(int(time.time() - float(expired))) from error
        except jwt.InvalidTokenError as error:
            raise TokenInvalid(str(error)) from error
        return dict(claims)

    def sign(self, claims: Mapping[str, object]) -> str:
        """A token with exactly these claims."""
        return jwt.encode(dict(claims), self.jwt_secret, algorithm="HS256")


def _role_token(secret: str, role: str) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "role": role, "iat": now, "exp": now + TEN_YEARS_SECONDS}
    return jwt.encode(claims, secret, algorithm="HS256")
