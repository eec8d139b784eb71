"""Validates every request of the gateway first: its Host must be this machine, and its path must be unambiguous.

A path is checked as received, before anything decodes it. Servers disagree about the meaning of `/a/%2e%2e/b`, `/a//b`
or `/a%2fb`, so a check of one reading proves nothing when another is served. No client of the stack needs such a path;
it is refused.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

from aiohttp import web

# Carries the gateway's secret to the servers behind it, as proof of origin; the same header from a client is dropped.
INNER_HEADER: Final = "x-tradecopier-gateway"
# No percent sign, backslash, empty segment or segment that begins with a dot: such a path needs no further check.
_PLAIN: Final = re.compile(
    r"/(?:[\w~!$&'()*+,;=:@-][\w.~!$&'()*+,;=:@-]*(?:/(?=[\w~!$&'()*+,;=:@-]|\Z)|\Z))*", re.ASCII
)
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{0,5}))?")
# `..` encoded once is `%2e%2e`, twice `%252e%252e`, and so on. No server decodes more often than this, and no honest
# client encodes more often.
_DECODINGS: Final = 4
# Characters that a query may contain as they are; every other byte is forwarded as %XX, which means the same.
_QUERY_SAFE: Final = "%-._~!$&'()*+,;=:@/?[]"
_PATH_SAFE: Final = "/~!$&'()*+,;=:@"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def guard_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a foreign Host with 421 and an ambiguous path with 400.

    It is the outermost middleware: it covers all routes.
    """
    if not is_loopback_host(request.headers.getall("Host", [])):
        return _refusal(
            421, "TC634", "the Host header of the request does not name this machine",
            "open the address that `tradecopier up` prints: its host is 127.0.0.1, localhost or [::1]",
        )  # fmt: skip
    fault = path_fault(request.raw_path)
    if fault is not None:
        return _refusal(
            400, "TC633", f"the path of the request {fault}", "send the path of the endpoint itself, without detours"
        )
    return await handler(request)


def is_loopback_host(headers: list[str]) -> bool:
    """Whether there is exactly one Host header and it is `localhost`, a name below it, or a loopback address (any
    port).

    A web page of another site can let its own name resolve to 127.0.0.1 (DNS rebinding), but it cannot change the Host
    that the browser sends.
    """
    if len(headers) != 1:
        return False
    found = _HOST.fullmatch(headers[0])
    if found is None or int(found["port"] or 0) > 65535:
        return False
    name = found["name"].lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return ".." not in name and not name.startswith(".")
    try:
        address = ipaddress.IPv6Address(name[1:-1]) if name.startswith("[") else ipaddress.IPv4Address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def path_fault(target: str) -> str | None:
    """What is wrong with the path of a request target (`/path?query`), or None.

    However often it is decoded, it must remain the same list of segments, none of them `.` or `..`, and none empty
    except the last.
    """
    path, _, query = target.partition("?")
    if "#" in query:
        return "is followed by a fragment (#), which is never sent to a server"
    if _PLAIN.fullmatch(path):
        return None
    if not path.startswith("/"):
        return "does not begin with /"
    if "#" in path:
        return "is followed by a fragment (#), which is never sent to a server"
    if _BROKEN_ESCAPE.search(path):
        return "contains a % that is not the start of an escape"
    text, slashes = path, path.count("/")
    for _ in range(_DECODINGS):
        fault = _fault(text)
        if fault is None and text.count("/") != slashes:
            fault = "contains an encoded /"
        if fault is not None:
            return fault
        try:
            decoded = unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode()
        except UnicodeDecodeError:
            return "is not UTF-8"
        if decoded == text:
            return None
        text = decoded
    return "is percent-encoded too many times"


def forwarded_target(target: str) -> str:
    """The target of a guarded request for the server behind: the path in canonical form, the query unchanged in
    meaning."""
    path, mark, query = target.partition("?")
    if not _PLAIN.fullmatch(path):
        path = quote(unquote_to_bytes(path.encode("utf-8", "surrogateescape")).decode(), _PATH_SAFE)
    return path + mark + quote_from_bytes(query.encode("utf-8", "surrogateescape"), _QUERY_SAFE)


def is_below(path: str, prefix: str) -> bool:
    """Whether a path (with or without a query) is `prefix` or lies below it: `/auth/v1x` is not below `/auth/v1`."""
    bare = path.partition("?")[0]
    return bare == prefix or bare.startswith(f"{prefix}/")


def readable(header: str) -> str:
    """A header's value without the surrogates for bytes that are not UTF-8, which neither JSON nor a header can
    carry."""
    return header if header.isascii() else header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _fault(text: str) -> str | None:
    if "\\" in text:
        return "has a back-slash"
    if _CONTROL.search(text):
        return "contains a NUL or another control character"
    if "//" in text:
        return "contains an empty segment (//)"
    if any(segment in (".", "..") for segment in text.split("/")):
        return "contains a dot segment (. or ..)"
    return None


def _refusal(status: int, code: str, message: str, hint: str) -> web.Response:
    response = web.json_response({"code": code, "message": message, "hint": hint}, status=status)
    # the rest of this connection, beginning with the body, is not read
    response.force_close()
    return response
