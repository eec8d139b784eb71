"""Auth: `@supabase/lite` under Deno, and the gateway's part in front of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from agent.stack.authentication import Access, AccessRefused, bearer_of
from agent.stack.deno_server import DenoServer
from agent.stack.keys import Keys
from agent.stack.request_body import TURN, read_body
from agent.stack.sign_in_limit import Attempt, BodyRefused, Guess, SignInLimit, SignInLimited, guess_in

SCRIPT: Final = Path(__file__).with_name("auth_server.ts")
# Nothing else of the package is served: its admin pages show the database's address.
PREFIXES: Final = ("/auth/v1",)
TOKEN_SECONDS: Final = 3600
PASSWORD_PATH: Final = "/auth/v1/token"
SERVED: Final = frozenset(
    {"signup", "token", "otp", "magiclink", "verify", "logout", "user", "recover", "resend", "reauthenticate",
     "settings", "health", "authorize", "callback"}
)  # fmt: skip
#: what hosted offers besides, by the beginning of its paths
LEFT_AWAY: Final = {
    "factors": "multi-factor authentication", "passkeys": "passkeys", "sso": "single sign-on", "saml": "single sign-on",
    "invite": "invitations", "admin/generate_link": "links made by the admin API", "admin/audit": "the audit log",
    "admin/sso": "single sign-on", "admin/oauth": "an OAuth server", "admin/custom-providers": "custom providers",
    "oauth": "an OAuth server", "user/identities": "linked identities", "user/oauth": "an OAuth server",
    "admin/users": "this call of the admin API",
}  # fmt: skip


class AuthServer:
    """Forwards `/auth/v1`, except for what `auth_admin.py` serves."""

    def __init__(self, keys: Keys, access: Access, *, dsn: str, site_url: str, root: Path, log_file: Path) -> None:
        self._keys = keys
        self._access = access
        self._passwords = SignInLimit()
        #: with the secret key, as agents sign in: other callers' guesses are not counted here
        self._secret_key_passwords = SignInLimit()
        self._codes = SignInLimit.of_codes()
        settings = {
            "dsn": dsn,
            "jwt_secret": keys.jwt_secret,
            "publishable_key": keys.publishable_key,
            "secret_key": keys.secret_key,
            "site_url": site_url,
            "jwt_expiry": TOKEN_SECONDS,
        }
        self._server = DenoServer(
            "Auth",
            SCRIPT,
            directory=root,
            log_file=log_file,
            environment=lambda: {"TRADECOPIER_AUTH": json.dumps(settings)},
            prefixes=PREFIXES,
            options=[
                "--no-config",
                "--node-modules-dir=manual",
                "--allow-net=127.0.0.1",
                "--allow-env",
                "--allow-sys",
                f"--allow-read={root}",
            ],
            heap_mb=192,
        )

    async def start(self) -> None:
        """Start it and wait until it answers. Raises Failure."""
        await self._server.ensure()

    async def close(self) -> None:
        """Stop the server."""
        await self._server.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Check API key and token, then forward."""
        headers: Mapping[str, str] = {}
        if not _is_open(request.path):
            try:
                caller = self._access.caller(request)
                headers = self._credentials(request)
            except AccessRefused as refused:
                return refused.response
            del caller
        path = request.path.removeprefix("/auth/v1/")
        if path == ".well-known/jwks.json":
            # tokens are signed with a shared secret, which is no public key
            return web.json_response({"keys": []})
        if path not in SERVED:
            return _left_away(path)
        body = await read_body(request)
        if isinstance(body, web.Response):
            return body
        if request.method == "OPTIONS":
            return await self._server.forward(request, headers=headers, body=body or None)
        try:
            guess, body = guess_in(request, body)
        except BodyRefused as refused:
            answer = {
                "code": 400,
                "error_code": "bad_json",
                "msg": f"{refused}. Send a JSON object as the Auth API describes it.",
            }
            return web.json_response(answer, status=400)
        if guess is None:
            return await self._server.forward(request, headers=headers, body=body or None)
        return await self._check_guess(request, headers, body, guess)

    async def _check_guess(
        self, request: web.Request, headers: Mapping[str, str], body: bytes, guess: Guess
    ) -> web.StreamResponse:
        """Count wrong passwords and codes; attempts with the secret key (Edge Functions) have their own count."""
        client, passwords = request.remote or "", self._passwords
        if request.path == PASSWORD_PATH and request.get(TURN) is None and self._access.is_secret(request):
            client, passwords = "the secret key", self._secret_key_passwords
        try:
            async with passwords.attempt(client, guess.whose) as attempt:
                if not guess.is_code:
                    return await self._forward_guess(request, headers, body, attempt)
                async with self._codes.attempt(client, guess.whose) as of_the_hour:
                    response = await self._forward_guess(request, headers, body, attempt)
                    of_the_hour.was_wrong = attempt.was_wrong
                    return response
        except SignInLimited as limited:
            return limited.response()

    async def _forward_guess(
        self, request: web.Request, headers: Mapping[str, str], body: bytes, attempt: Attempt
    ) -> web.StreamResponse:
        response = await self._server.forward(request, headers=headers, body=body or None)
        # After following a link from a mail, a browser is redirected (303) with the error in the address.
        if 400 <= response.status < 500 or "error=" in response.headers.get("Location", ""):
            attempt.wrong()
        return response

    def _credentials(self, request: web.Request) -> Mapping[str, str]:
        """The package knows only the newer keys: older JWT keys are replaced by them, and never act as a user's
        token."""
        key = request.headers.get("apikey") or request.query.get("apikey") or ""
        bearer = bearer_of(request)
        role = self._keys.verify(key).get("role")
        headers = {"apikey": self._keys.secret_key if role == "service_role" else self._keys.publishable_key}
        if bearer is not None and (bearer == key or bearer.startswith("sb_")):
            # empty: the header is not forwarded
            headers["Authorization"] = ""
        elif bearer is not None and self._keys.verify(bearer).get("role") in ("anon", "service_role"):
            of_bearer = self._keys.verify(bearer).get("role")
            headers = {"apikey": self._keys.secret_key if of_bearer == "service_role" else self._keys.publishable_key}
            headers["Authorization"] = ""
        return headers


def _left_away(path: str) -> web.Response:
    """The answer to a call that Auth does not serve here, in the form that the clients read (5xx would be retried)."""
    found = next((what for start, what in LEFT_AWAY.items() if path == start or path.startswith(f"{start}/")), None)
    if found is None:
        body = {"code": 404, "error_code": "not_found", "msg": f"Auth has no endpoint /{path}"}
        return web.json_response(body, status=404)
    message = f"this stack does not offer {found}; use a hosted project (docs/unverified.md lists what is left away)"
    return web.json_response({"code": 422, "error_code": "not_offered", "msg": message}, status=422)


def _is_open(path: str) -> bool:
    """Whether a browser may open this path without a key."""
    return path in (
        "/auth/v1/verify",
        "/auth/v1/callback",
        "/auth/v1/authorize",
        "/auth/v1/health",
        "/auth/v1/.well-known/jwks.json",
    )
