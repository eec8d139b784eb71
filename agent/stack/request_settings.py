"""The settings of a request's transaction: role, claims, timeout, and what functions may ask of the request."""

from typing import Final

import orjson
from aiohttp import web

from agent.stack.authentication import Caller
from agent.stack.request_guard import INNER_HEADER, readable

# the authenticator's own timeout, for roles without one
DEFAULT_TIMEOUT: Final = "8s"
# All settings are local to the transaction, which the pipeline's single sync ends. The role is set last, except for the
# settings that the role itself may change.
SETTINGS: Final = (
    b"select set_config('search_path', %s, true), set_config('request.jwt.claims', %s, true),"
    b" set_config('request.method', %s, true), set_config('request.path', %s, true), set_config('request.headers',"
    b" %s, true),"
    b" set_config('transaction_read_only', %s, true), set_config('statement_timeout', %s, true), set_config('role',"
    b" %s, true)"
)
PRIVATE_HEADERS: Final = frozenset({"authorization", "apikey", "cookie", INNER_HEADER})


def settings_of(
    request: web.Request, caller: Caller, schema: str, timeout: str | None, *, read_only: bool
) -> tuple[str, ...]:
    """The values for SETTINGS. `timeout`: that of the function or of the role."""
    quoted = '"' + schema.replace('"', '""') + '"'
    return (
        "public, extensions" if schema == "public" else f"{quoted}, public, extensions",
        caller.claims_json,
        request.method,
        request.path,
        _headers_json(request),
        "on" if read_only else "off",
        timeout or DEFAULT_TIMEOUT,
        caller.role,
    )


def _headers_json(request: web.Request) -> str:
    headers = {readable(k).lower(): readable(v) for k, v in request.headers.items() if k.lower() not in PRIVATE_HEADERS}
    return orjson.dumps(headers).decode()
