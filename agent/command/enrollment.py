"""Enrolment: exchanges a one-time token for the identity of a VPS, and stores it readable by its owner only."""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from agent import paths, unreachable
from agent.address import on_this_machine, require_origin
from agent.control_plane import json_fields
from agent.control_plane.retry import classify_auth
from agent.failure import Failure
from agent.settings import PREFIX, identity_file

log = logging.getLogger(__name__)

TIMEOUT = aiohttp.ClientTimeout(total=30, connect=10)


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of an agent. The secret signs it in without expiry and is never shown."""

    url: str
    vps_id: str
    publishable_key: str = field(repr=False)
    secret: str = field(repr=False)


async def enroll(url: str, token: str, name: str, platforms: Sequence[str], key: str | None = None) -> Identity:
    """Exchange the token for an identity. Raises `Failure`; only success uses the token up.

    The token is sent to this address only: never over plain http to another machine, and redirects are not followed.
    """
    url = require_origin(url, "--url", "TC611")
    body = {"token": token, "name": name, "platforms": list(platforms)}
    headers = {"content-type": "application/json"} | ({"apikey": key} if key else {})
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT, trust_env=not on_this_machine(url)) as http,
            http.post(
                f"{url}/functions/v1/enroll", data=json_fields.dumps(body), headers=headers, allow_redirects=False
            ) as response,
        ):
            status, data = response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        fix = "check the address and this machine's network, then try again"
        raise unreachable.failure(url, error, fix) from error
    if status >= 300:
        raise _refusal(url, status, data)
    return _identity(url, data, key)


def _refusal(url: str, status: int, data: bytes) -> Failure:
    try:
        raw = json_fields.as_object(json_fields.loads(data), "error")
    except json_fields.WireError:
        raw = {}
    message, code, hint = raw.get("message"), raw.get("code"), raw.get("hint")
    if classify_auth(status) == "retry" or not message:
        return Failure(
            f"the enrol function of {url} failed with HTTP {status}",
            "check that it is deployed, then try again",
            code="TC615",
        )
    fix = str(hint) if hint else "ask an operator for a new token (create_enrollment_token, docs/api.md)"
    return Failure(f"{url} refused the enrolment: {message}", fix, code=str(code) if code else None)


def _identity(url: str, data: bytes, key: str | None) -> Identity:
    try:
        raw = json_fields.as_object(json_fields.loads(data), "identity")
        vps_id, secret = json_fields.text(raw, "vps_id"), json_fields.text(raw, "secret")
        published = key or json_fields.optional_text(raw, "publishable_key")
    except json_fields.WireError as error:
        raise Failure(
            f"the answer of {url}'s enrol function holds no identity",
            "deploy the version of the enrol function that belongs to this agent",
            code="TC615",
        ) from error
    if not published:
        raise Failure(
            "the project did not send its publishable key",
            "enrol again with a new token and --key K (Project Settings → API keys)",
            code="TC615",
        )
    return Identity(url, vps_id, published, secret)


def store(identity: Identity, data_dir: Path) -> Path:
    """Write the identity file atomically, readable by this user only. Returns its path."""
    file = identity_file(data_dir)
    new = file.with_suffix(".new")
    content = {
        "url": identity.url,
        "publishable_key": identity.publishable_key,
        "vps_id": identity.vps_id,
        "agent_secret": identity.secret,
    }
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(json_fields.dumps(content))
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
    return file


def check_writable(data_dir: Path) -> None:
    """Before the token is used up: raises `Failure` if the identity cannot be stored here, or if one exists."""
    file = identity_file(data_dir)
    if file.exists():
        raise Failure(
            f"this machine is enrolled already ({file})",
            f"remove that file first if the VPS was retired, or choose another {PREFIX}DATA_DIR",
            code="TC616",
        )
    paths.require_folder(data_dir, f"choose another {PREFIX}DATA_DIR")


def default_name() -> str:
    """The machine's name, with characters that a VPS's name may not have replaced by dashes."""
    host = socket.gethostname().split(".")[0]
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in host).strip("-")
    return kept[:63] or "vps"


def enroll_this_machine(
    url: str, token: str, name: str | None, platforms: Sequence[str], key: str | None, data_dir: Path
) -> tuple[Identity, Path]:
    """Enrol this machine; returns the identity and its file. Raises `Failure`."""
    require_origin(url, "--url", "TC611")
    check_writable(data_dir)
    identity = asyncio.run(enroll(url, token, name or default_name(), platforms, key))
    return identity, store(identity, data_dir)
