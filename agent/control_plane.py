"""The agent's only door to Supabase: calls the functions of docs/protocol.md as the agent's own auth user.

Speaks PostgREST's RPC with aiohttp instead of the `postgrest` client: the same call costs the agent 0.3 ms instead of
1.2 ms (`python -m tests.agent.measure_rpc_clients`), and it is on the path of every copied trade.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import aiohttp

from agent import json_fields, offers, wire
from agent.clock import DatabaseClock, Lease, boot_time
from agent.model import AccountId, Event, Login, Mode, Report
from agent.retry import CallFailed, CutOff, Refused, SignInRefused, Unreachable, backoff, classify, failure_of
from agent.session import BackboneCutOff, BackboneRefused, QueueAnswer, ReportAnswer
from agent.settings import Settings
from agent.tokens import Auth, SupabaseAuth, Tokens

log = logging.getLogger(__name__)

#: one attempt; hosted cancels a statement of `authenticated` after 8 s
TIMEOUT: Final = aiohttp.ClientTimeout(total=10, connect=5)
#: a heartbeat is tried again with fresh figures anyway, and its lease counts from before the request
HEARTBEAT_TIMEOUT: Final = aiohttp.ClientTimeout(total=6, connect=3)
MAX_BODY_BYTES: Final = 1_000_000
#: a round trip up to twice the best recent one and this much more measures the clock; the best grows by this factor per heartbeat
RTT_SLACK_MS: Final = 2
RTT_FORGET: Final = 1.05


@dataclass(frozen=True, slots=True)
class Session:
    """The database's number for one login of an account; before `begins_at` the agent may read but not trade."""

    session: int
    continues: int | None
    begins_at: datetime


@dataclass(frozen=True, slots=True)
class Credentials:
    login: str
    server: str
    password: str = field(repr=False)
    settings: Mapping[str, object] = field(repr=False, default_factory=dict)


class ControlPlane:
    """Async context manager. Every call is idempotent, and retried while that can help and `patience` lasts.

    It is the `Backbone` of engine and watchers. Other calls raise `Refused` (definitive, with the code of docs/errors.md) or
    `Unreachable` (may have been carried out).
    """

    def __init__(
        self,
        settings: Settings,
        clock: DatabaseClock,
        *,
        auth: Callable[[aiohttp.ClientSession], Auth] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._best_rtt_ms = math.inf
        self._http = _new_http(settings.url)
        self.tokens = Tokens(auth(self._http) if auth else SupabaseAuth(settings, self._http), sleep=sleep)
        self._rpc = f"{settings.rest_url}/rpc/"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.close()

    # -- what the engine and the watcher need ----------------------------------------------------------------

    async def queue_trade_copy(self, account_id: AccountId, epoch: int, events: Sequence[Event]) -> QueueAnswer:
        """Retries until delivered; raises `BackboneRefused` (`agent.session.Backbone`)."""
        argument = {"account_id": account_id, "epoch": epoch, "events": [wire.event_to_json(event) for event in events]}
        raw = await self._deliver("queue_trade_copy", "p_events", argument, len(events))
        return QueueAnswer(results=wire.event_results(raw.get("results")), executions=offers.executions(raw.get("executions")))

    async def report_executions(self, reports: Sequence[Report]) -> ReportAnswer:
        """Retries until delivered; raises `BackboneRefused` (`agent.session.Backbone`)."""
        argument = {"reports": [wire.report_to_json(report) for report in reports]}
        raw = await self._deliver("report_executions", "p_reports", argument, len(reports))
        return ReportAnswer(results=wire.report_results(raw.get("results")), executions=offers.executions(raw.get("executions")))

    async def _deliver(self, name: str, parameter: str, argument: Mapping[str, object], items: int) -> json_fields.Json:
        """Until it arrives; what is too much for one statement goes back to the caller, who sends it in parts."""
        try:
            answer = await self.call(name, parameter, argument, patience=math.inf, in_parts=items > 1)
            return json_fields.as_object(answer, name)
        except Refused as error:
            raise BackboneRefused(error.code or f"HTTP {error.status}", error.message) from error
        except CutOff as error:
            raise BackboneCutOff(error.message) from error

    # -- accounts --------------------------------------------------------------------------------------------

    async def open_session(self, account_id: AccountId, epoch: int) -> Session:
        raw = json_fields.as_object(
            await self.call("open_session", "p_request", {"account_id": account_id, "epoch": epoch}), "session"
        )
        return Session(
            json_fields.integer(raw, "session"),
            json_fields.optional_integer(raw, "continues"),
            json_fields.instant(raw, "begins_at"),
        )

    async def report_account_state(self, state: Mapping[str, object]) -> int | None:
        """`state` as docs/protocol.md says; Decimals and datetimes may stand in it. Returns `look_again_ms` of the answer."""
        raw = json_fields.as_object(await self.call("report_account_state", "p_state", state), "account state")
        return json_fields.optional_integer(raw, "look_again_ms")

    async def credentials(self, account_id: AccountId, epoch: int) -> Credentials:
        raw = json_fields.as_object(
            await self.call("account_credentials", "p_request", {"account_id": account_id, "epoch": epoch}), "credentials"
        )
        return Credentials(
            login=json_fields.text(raw, "login"),
            server=json_fields.optional_text(raw, "server") or "",
            password=json_fields.optional_text(raw, "password") or "",
            settings=json_fields.as_object(raw.get("settings") or {}, "settings"),
        )

    # -- the agent itself ------------------------------------------------------------------------------------

    async def heartbeat(self, figures: Mapping[str, object], lease: Lease) -> tuple[offers.Heartbeat, float]:
        """One heartbeat, one attempt; renews `lease` and measures the clock. Returns the answer and the round trip in ms."""
        sent_at_boot, before = boot_time(), datetime.now(UTC)
        raw = await self.call("vps_heartbeat", "p_heartbeat", figures, patience=0, limit=HEARTBEAT_TIMEOUT)
        after = datetime.now(UTC)
        answer = offers.heartbeat_from_json(raw)
        lease.renew(sent_at_boot, answer.lease_ms)
        rtt_ms = (after - before).total_seconds() * 1000
        if self._is_typical(rtt_ms):
            self._clock.measure(before, answer.server_time, after)
        return answer, rtt_ms

    def _is_typical(self, rtt_ms: float) -> bool:
        """Half of a slow round trip says nothing about the clock; what is slow is forgotten little by little."""
        self._best_rtt_ms = min(rtt_ms, self._best_rtt_ms * RTT_FORGET)
        return rtt_ms <= self._best_rtt_ms * 2 + RTT_SLACK_MS

    # -- one call --------------------------------------------------------------------------------------------

    async def call(
        self,
        name: str,
        parameter: str,
        argument: Mapping[str, object],
        *,
        patience: float = 20,
        limit: aiohttp.ClientTimeout = TIMEOUT,
        in_parts: bool = False,
    ) -> object:
        """Call a function with one jsonb and return its JSON. Retries for about `patience` seconds (0: one attempt).

        `in_parts`: the caller can send less at once, so a statement that was cut off is not repeated but raised (`CutOff`).
        """
        body = json_fields.dumps({parameter: argument})
        if len(body) > MAX_BODY_BYTES:
            raise Refused(
                name, f"{len(body)} bytes are over the limit of {MAX_BODY_BYTES}", code="TC002", hint="send less at once"
            )
        waits = backoff(0.05, 5)
        waited = 0.0
        while True:
            try:
                return await self._attempt(name, body, limit)
            except (Unreachable, SignInRefused) as error:
                # A refused sign-in says nothing about the call: what must be delivered waits for an operator to mend it.
                if (isinstance(error, SignInRefused) and patience != math.inf) or (in_parts and isinstance(error, CutOff)):
                    raise
                wait = next(waits)
                if waited + wait > patience:
                    raise
                waited += wait
                log.warning("call_retried", extra={"call": name, "error": error.message, "wait_ms": round(wait * 1000)})
                await self._sleep(wait)

    async def _attempt(self, name: str, body: bytes, limit: aiohttp.ClientTimeout) -> object:
        """One attempt, with one renewal of a token that was refused."""
        token = await self.tokens.access()
        status, data = await self._post(name, body, token, limit)
        if status >= 300 and classify(status, _error_of(data)[0]) == "sign_in":
            token = await self.tokens.renew(rejected=token)
            status, data = await self._post(name, body, token, limit)
        if status >= 300:
            raise _failed(name, status, data)
        try:
            return json_fields.loads(data)
        except json_fields.WireError as error:
            raise Unreachable(name, f"the answer is not JSON ({len(data)} bytes)") from error

    async def _post(self, name: str, body: bytes, token: str, limit: aiohttp.ClientTimeout) -> tuple[int, bytes]:
        headers = {
            "apikey": self._settings.publishable_key,
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
        }
        try:
            async with self._http.post(self._rpc + name, data=body, headers=headers, timeout=limit) as response:
                return response.status, await response.read()
        except TimeoutError as error:
            raise Unreachable(name, f"no answer within {limit.total} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(name, f"{type(error).__name__}: {error}") from error


def _new_http(url: str) -> aiohttp.ClientSession:
    """Connections are kept for longer than the pause between heartbeats, so that a trade never waits for a TLS handshake."""
    loopback = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    connector = aiohttp.TCPConnector(limit=16, keepalive_timeout=60, ttl_dns_cache=300)
    return aiohttp.ClientSession(connector=connector, trust_env=not loopback, auto_decompress=True)


def _error_of(data: bytes) -> tuple[str | None, str, str | None]:
    """(code, message, hint) of PostgREST's error object; a gateway's HTML gives none."""
    try:
        raw = json_fields.as_object(json_fields.loads(data), "error")
    except json_fields.WireError:
        return None, "the server's answer is not JSON", None
    code, message, hint = raw.get("code"), raw.get("message") or raw.get("msg") or raw.get("error"), raw.get("hint")
    return (code if isinstance(code, str) else None), str(message or "no message"), (hint if isinstance(hint, str) else None)


def _failed(name: str, status: int, data: bytes) -> CallFailed:
    code, message, hint = _error_of(data)
    return failure_of(name, status, code, message, hint)


def login_of(account_id: AccountId, platform: str, mode: Mode, currency: str, credentials: Credentials) -> Login:
    """What an adapter needs, from an assignment and its credentials."""
    return Login(
        account_id=account_id,
        platform=platform,
        server=credentials.server,
        login=credentials.login,
        password=credentials.password,
        mode=mode,
        currency=currency,
        settings=credentials.settings,
    )


__all__ = ["ControlPlane", "Credentials", "Refused", "Session", "SignInRefused", "Unreachable", "login_of"]
