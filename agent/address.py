"""Addresses of a Supabase project: https, or plain http to this machine only, because keys, tokens and passwords are
sent there."""

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from agent.failure import Failure

#: only scheme, host and port: with `@`, `#`, `?` or `\` a reader and an HTTP client could see different hosts
_ORIGIN: Final = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)


def origin(url: str) -> str:
    """The address without a trailing slash. Raises `ValueError` that says what is wrong."""
    trimmed = url.strip().rstrip("/")
    found = _ORIGIN.fullmatch(trimmed)
    if found is None:
        raise ValueError("it must be an address such as https://<ref>.supabase.co, without a path")
    if found[1] == "http" and not is_loopback(found[2]):
        raise ValueError("it must begin with https: over http, passwords would be sent unencrypted")
    return trimmed


def require_origin(url: str, name: str, code: str) -> str:
    """`origin` for a command: `name` is the option or variable that holds the address. Raises `Failure`."""
    try:
        return origin(url)
    except ValueError as error:
        raise Failure(
            f"{name} {url!r} is wrong: {error}",
            "give the project's own address (Project Settings → Data API); plain http only for a stack on this machine",
            code=code,
        ) from error


def on_this_machine(url: str) -> bool:
    """Whether the address is a loopback one; no proxy leads there."""
    return is_loopback(urlsplit(url).hostname or "")


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
