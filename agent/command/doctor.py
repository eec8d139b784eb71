"""`tradecopier agent doctor`: checks what an agent needs on this machine; one line per check, with its fix. Changes
nothing."""

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp

from agent import unreachable
from agent.failure import Failure
from agent.platforms.factory import PlatformFactory, UnknownPlatform
from agent.settings import PREFIX, Settings, default_data_dir, load_settings

FREE_DISK_MB: Final = 500
CLOCK_OFF_S: Final = 5
TIMEOUT: Final = aiohttp.ClientTimeout(total=10, connect=5)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; `fix` is empty when `ok`."""

    name: str
    ok: bool
    found: str
    fix: str = ""

    def line(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'} {self.name}: {self.found}" + (f" → {self.fix}" if self.fix else "")


def examine() -> Iterator[Check]:
    """Run every check, the cheapest first; those that need the settings only if the settings are complete."""
    yield _python()
    yield _disk()
    yield _data_dir()
    yield from _platforms()
    try:
        settings = load_settings()
    except Failure as failure:
        # Before enrolment the address may already be set: the network to it can be checked.
        first, *problems = failure.what.split("\n  ")
        yield from (Check("settings", False, problem) for problem in problems or [f"{first} → {failure.fix}"])
        if url := os.environ.get(PREFIX + "URL"):
            yield asyncio.run(_reachable(url.rstrip("/"), None))[0]
        return
    yield Check("settings", True, f"{settings.url}, data in {settings.data_dir}")
    yield from asyncio.run(_online(settings))


def usable_platforms() -> tuple[str, ...]:
    """The platforms whose adapters can be imported on this machine."""
    return tuple(check.name.removeprefix("platform ") for check in _platforms() if check.ok)


def _python() -> Check:
    # An older Python cannot import this module. 64 bits are needed for the journal's numbers and for the terminals.
    found = f"{platform.python_version()}, {platform.machine()}"
    if sys.maxsize < 2**32:
        return Check("python", False, f"{found}, 32 bits", "install the 64-bit Python")
    return Check("python", True, found)


def _disk() -> Check:
    place = default_data_dir()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free // 2**20
    if free < FREE_DISK_MB:
        return Check(
            "disk",
            False,
            f"{free} MB free on {place}",
            f"free at least {FREE_DISK_MB} MB: the journal must always be writable",
        )
    return Check("disk", True, f"{free} MB free")


def _data_dir() -> Check:
    place = default_data_dir()
    nearest = place
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Check(
            "data directory",
            False,
            f"{place} cannot be written",
            f"give this user write permission, or choose another {PREFIX}DATA_DIR",
        )
    file = place / "agent.json"
    if sys.platform != "win32" and file.exists() and file.stat().st_mode & 0o077:
        return Check("data directory", False, f"{file} holds a secret and is readable by others", f"chmod 600 {file}")
    return Check("data directory", True, str(place))


def _platforms() -> list[Check]:
    factory = PlatformFactory()
    checks = []
    for name in factory.names:
        try:
            factory.create(name)
        except UnknownPlatform as error:
            checks.append(
                Check(
                    f"platform {name}",
                    False,
                    str(error),
                    "run `make setup` again, or leave this platform to other VPSes",
                )
            )
        else:
            checks.append(Check(f"platform {name}", True, "can be used"))
    return checks


async def _online(settings: Settings) -> list[Check]:
    """Network, clock, key, sign-in and Realtime; stops at the first check that fails."""
    reachable, answered_at = await _reachable(settings.url, settings.publishable_key)
    checks = [reachable]
    if not reachable.ok:
        return checks
    checks.append(_clock(answered_at))
    for step in (_key, _signed_in, _joined):
        found = await _bounded(step, settings)
        checks += found
        if not all(check.ok for check in found):
            break
    return checks


async def _bounded(step: Callable[[Settings], Awaitable[list[Check]]], settings: Settings) -> list[Check]:
    try:
        async with asyncio.timeout(30):
            return await step(settings)
    except TimeoutError:
        return [
            Check(
                step.__name__.strip("_").replace("_", " "),
                False,
                "no answer within 30 s",
                "check the network, then run it again",
            )
        ]


async def _reachable(url: str, key: str | None) -> tuple[Check, datetime | None]:
    headers = {"apikey": key} if key else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT, trust_env=True) as http,
            http.get(f"{url}/auth/v1/health", headers=headers) as response,
        ):
            date = response.headers.get("date")
            gateway_down = response.status in (502, 503, 504, 521, 522, 523)
            status = response.status
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        found = unreachable.failure(url, error, "check the address, DNS, proxy and firewall (port 443)")
        return Check(
            "network",
            False,
            found.what,
            found.fix,
        ), None
    if gateway_down:
        return Check(
            "network", False, f"{url} answers HTTP {status}", "the project is down or paused: check its dashboard"
        ), None
    return Check("network", True, f"{url} answers"), parsedate_to_datetime(date) if date else None


def _clock(server: datetime | None) -> Check:
    if server is None:
        return Check("clock", True, "not checked: the server sent no time; the heartbeat will measure the clock")
    off = abs((datetime.now(UTC) - server).total_seconds())
    if off > CLOCK_OFF_S:
        return Check(
            "clock",
            False,
            f"{off:.0f} s off the server's",
            "switch on time synchronisation (systemd-timesyncd, chrony, Windows Time)",
        )
    return Check("clock", True, f"within {CLOCK_OFF_S} s of the server's")


async def _key(settings: Settings) -> list[Check]:
    headers = {"apikey": settings.publishable_key}
    async with (
        aiohttp.ClientSession(timeout=TIMEOUT, trust_env=True) as http,
        http.get(f"{settings.auth_url}/settings", headers=headers) as response,
    ):
        if response.status in (401, 403):
            return [
                Check(
                    "key",
                    False,
                    "the publishable key was refused",
                    f"set {PREFIX}PUBLISHABLE_KEY to the project's (Project Settings → API keys)",
                )
            ]
    return [Check("key", True, "accepted")]


async def _signed_in(settings: Settings) -> list[Check]:
    from agent.clock import DatabaseClock
    from agent.control_plane.client import ControlPlane
    from agent.control_plane.retry import CallFailed

    async with ControlPlane(settings, DatabaseClock()) as plane:
        try:
            await plane.tokens.access()
        except CallFailed as error:
            return [
                Check("sign-in", False, str(error), "enrol this VPS again if it was retired; if it is an outage, wait")
            ]
    return [Check("sign-in", True, "accepted")]


async def _joined(settings: Settings) -> list[Check]:
    """Join the agent's topic. No heartbeat is sent, since it would renew the lease of an agent that does not trade."""
    from agent.broadcasts.channel import Channel
    from agent.clock import DatabaseClock
    from agent.control_plane.client import ControlPlane

    if not settings.vps_id:
        return [Check("realtime", True, "not checked: the topic is known to enrolled agents only")]
    async with ControlPlane(settings, DatabaseClock()) as plane:
        subscription = Channel(
            settings.realtime_url, settings.publishable_key, f"vps:{settings.vps_id}", ("tick",), lambda *_: None
        )
        try:
            joined = await subscription.join(await plane.tokens.access())
            why = subscription.ended.result() if subscription.ended.done() else ""
        except Exception as error:
            joined, why = False, f"{type(error).__name__}: {error}"
        finally:
            await subscription.discard()
    if not joined:
        return [
            Check(
                "realtime",
                False,
                f"vps:{settings.vps_id} could not be joined ({why})",
                "let WebSockets pass the proxy; enable Realtime for the project",
            )
        ]
    return [Check("realtime", True, f"vps:{settings.vps_id} can be joined")]
