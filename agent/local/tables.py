"""Auth and the tables' REST: `@supabase/lite` under Deno, and the gateway's part in front of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from agent.local.access import Access, AccessRefused, bearer_of
from agent.local.keys import Keys
from agent.local.process import DenoServer
from agent.local.rpc import MAX_ROWS, read_body

SCRIPT: Final = Path(__file__).with_name("lite.ts")
TOKEN_SECONDS: Final = 3600


class LiteServer:
    """Forwards `/auth/v1` and what the RPC path leaves of `/rest/v1`."""

    def __init__(
        self, keys: Keys, access: Access, *, rest_dsn: str, auth_dsn: str, site_url: str, root: Path, log_file: Path
    ) -> None:
        self._keys = keys
        self._access = access
        settings = {
            "rest_dsn": rest_dsn,
            "auth_dsn": auth_dsn,
            "jwt_secret": keys.jwt_secret,
            "publishable_key": keys.publishable_key,
            "secret_key": keys.secret_key,
            "site_url": site_url,
            "max_rows": MAX_ROWS,
            "jwt_expiry": TOKEN_SECONDS,
        }
        self._server = DenoServer(
            "Auth and REST",
            SCRIPT,
            directory=root,
            log_file=log_file,
            environment=lambda: {"TRADECOPIER_LITE": json.dumps(settings)},
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
        """Stop it."""
        await self._server.close()

    async def reload(self) -> None:
        """Let it read the schema again."""
        await self._server.request("POST", "/reload")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Check key and token, then forward."""
        headers: Mapping[str, str] = {}
        if not _is_open(request.path):
            try:
                caller = self._access.caller(request)
                headers = self._credentials(request)
            except AccessRefused as refused:
                return refused.response
            del caller
        body = await read_body(request)
        if isinstance(body, web.Response):
            return body
        return await self._server.forward(request, headers=headers, body=body or None)

    def _credentials(self, request: web.Request) -> Mapping[str, str]:
        """The package knows only the newer keys: older JWT keys become those, and stand in for no user's token."""
        key = request.headers.get("apikey") or request.query.get("apikey") or ""
        bearer = bearer_of(request)
        role = self._keys.verify(key).get("role")
        headers = {"apikey": self._keys.secret_key if role == "service_role" else self._keys.publishable_key}
        if bearer is not None and (bearer == key or bearer.startswith("sb_")):
            headers["Authorization"] = ""  # empty: not forwarded
        elif bearer is not None and self._keys.verify(bearer).get("role") in ("anon", "service_role"):
            of_bearer = self._keys.verify(bearer).get("role")
            headers = {"apikey": self._keys.secret_key if of_bearer == "service_role" else self._keys.publishable_key}
            headers["Authorization"] = ""
        return headers


def _is_open(path: str) -> bool:
    """Addresses that a browser follows without a key."""
    return path in (
        "/auth/v1/verify",
        "/auth/v1/callback",
        "/auth/v1/authorize",
        "/auth/v1/health",
        "/auth/v1/.well-known/jwks.json",
    )
