"""`/functions/v1/<name>`: the Edge Functions of supabase/config.toml, in one Deno process that starts on the first
call."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from agent.stack.authentication import Access, AccessRefused
from agent.stack.deno_server import DenoServer
from agent.stack.keys import Keys
from agent.stack.request_body import read_body

HOST: Final = Path(__file__).with_name("functions_host.ts")
IDLE_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class EdgeFunction:
    """One `[functions.<name>]` section. As on hosted, the caller's JWT is checked unless `verify_jwt = false`."""

    name: str
    entrypoint: Path
    verify_jwt: bool
    import_map: Path | None


def configured_functions(root: Path) -> dict[str, EdgeFunction]:
    """The functions that supabase/config.toml names; its paths are relative to `supabase/`."""
    file = root / "supabase" / "config.toml"
    if not file.exists():
        return {}
    folder = file.parent
    found = {}
    for name, entry in tomllib.loads(file.read_text()).get("functions", {}).items():
        if not isinstance(entry, dict) or entry.get("enabled", True) is False:
            continue
        entrypoint = folder / str(entry.get("entrypoint", f"functions/{name}/index.ts"))
        import_map = folder / str(entry["import_map"]) if "import_map" in entry else None
        found[name] = EdgeFunction(name, entrypoint.resolve(), bool(entry.get("verify_jwt", True)), import_map)
    return found


class EdgeFunctions:
    """Checks the caller as hosted does, then forwards the request to the Deno process."""

    def __init__(self, keys: Keys, access: Access, *, url: str, dsn: str, root: Path, log_file: Path) -> None:
        self._access = access
        self._functions = configured_functions(root)
        environment = {
            "TRADECOPIER_FUNCTIONS": json.dumps({name: str(f.entrypoint) for name, f in self._functions.items()}),
            "SUPABASE_URL": url,
            "SUPABASE_ANON_KEY": keys.anon_jwt,
            "SUPABASE_SERVICE_ROLE_KEY": keys.service_role_jwt,
            "SUPABASE_PUBLISHABLE_KEYS": json.dumps({"default": keys.publishable_key}),
            "SUPABASE_SECRET_KEYS": json.dumps({"default": keys.secret_key}),
            "SUPABASE_PUBLISHABLE_KEY": keys.publishable_key,
            "SUPABASE_SECRET_KEY": keys.secret_key,
            "SUPABASE_DB_URL": dsn,
            "SB_REGION": "local",
        }
        self._server = DenoServer(
            "Edge Functions",
            HOST,
            directory=root,
            log_file=log_file,
            environment=lambda: environment,
            prefixes=[f"/{name}" for name in self._functions],
            options=[*_config(root, self._functions), "--node-modules-dir=manual", "--allow-net", "--allow-env",
                     "--allow-sys", f"--allow-read={root}"],
            heap_mb=128,
            idle_seconds=IDLE_SECONDS,
            own_cors=True,
        )  # fmt: skip

    async def close(self) -> None:
        """Stop the Deno process."""
        await self._server.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """404 for an unknown name, 401 without a valid JWT where one is required, otherwise the function's response."""
        name = request.match_info["name"]
        function = self._functions.get(name)
        if function is None:
            return web.json_response({"code": "NOT_FOUND", "message": "Requested function was not found"}, status=404)
        headers: Mapping[str, str] = {}
        # A browser sends its preflight without a token.
        if function.verify_jwt and request.method != "OPTIONS":
            try:
                self._access.token(request)
            except AccessRefused as refused:
                return refused.response
        body = await read_body(request)
        if isinstance(body, web.Response):
            return body
        # As on hosted, the path that the function sees begins with its own name.
        return await self._server.forward(request, below="/functions/v1", headers=headers, body=body or None)


def _config(root: Path, functions: Mapping[str, EdgeFunction]) -> list[str]:
    own = [f.import_map for f in functions.values() if f.import_map is not None]
    shared = root / "functions" / "deno.json"
    if own and own[0].name not in ("deno.json", "deno.jsonc"):
        return ["--no-config", f"--import-map={own[0].resolve()}"]
    chosen = own[0].resolve() if own else shared
    if not chosen.exists():
        return ["--no-config"]
    lock = chosen.with_name("deno.lock")
    # --frozen: a function that imports something missing from the lock file fails to start instead of downloading it.
    return [f"--config={chosen}", *([f"--lock={lock}", "--frozen"] if lock.exists() else [])]
