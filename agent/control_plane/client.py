"""The agent's client of Supabase: calls the functions of docs/protocol.md as the agent's own auth user.

Uses aiohttp for PostgREST's RPC instead of the `postgrest` client, because this is on the path of every copied trade:
a call costs the agent 0.3 ms instead of 1.2 ms (tests/control_plane/measure_rpc_clients.py).
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Final, Self

import aiohttp

from agent import unreachable
from agent.address import on_this_machine
from agent.clock import DatabaseClock, Lease, boot_time
from agent.control_plane import decode, encode, json_fields
from agent.control_plane.contract import BackboneCutOff, BackboneRefused, QueueAnswer, ReportAnswer
from agent.control_plane.owners import SESSIONS, STATES, TRADES, Owners
from agent.control_plane.retry import (
    CallFailed,
    CutOff,
    Refused,
    SignInRefused,
    TimedOut,
    Unreachable,
    backoff,
    classify,
    failure_of,
)
from agent.control_plane.tokens import Auth, SupabaseAuth, Tokens
from agent.control_plane.witness import Witness
from agent.model import AccountId, Event, Login, Mode, Report
from agent.settings import Settings

log = logging.getLogger(__name__)

#: seconds per attempt; hosted Supabase cancels a statement of `authenticated` after 8 s
TIMEOUT: Final = aiohttp.ClientTimeout(total=10, connect=5)
#: shorter, because the next heartbeat carries newer figures, and the lease counts from before the request
HEARTBEAT_TIMEOUT: Final = aiohttp.ClientTimeout(total=6, connect=3)
#: the database speaks an older protocol than this agent needs (docs/errors.md)
DATABASE_TOO_OLD: Final = "TC112"
MAX_BODY_BYTES: Final = 1_000_000
#: connections for calls about accounts; heartbeats and tokens have separate ones, so that nothing delays the renewal of
#: the lease
CONNECTIONS: Final = 32
OWN_CONNECTIONS: Final = 4
#: a call measures the clock if it was under way for at most twice the best recent time plus this slack; the best time
#: grows by this factor per call
RTT_SLACK_MS: Final = 2
RTT_FORGET: Final = 1.05


@dataclass(frozen=True, slots=True)
class Session:
    """The database's answer to `open_session`: the session's number, the account's previous session if this VPS held it
    (`continues`), and the time before which the agent may read but not trade."""

    session: int
    continues: int | None
    begins_at: datetime


@dataclass(frozen=True, slots=True)
class Credentials:
    login: str
    server: str
    password: str = field(repr=False)
    address: str = ""
    settings: Mapping[str, object] = field(repr=False, default_factory=dict)
    #: revision of password and settings
    revision: int = 1


class ControlPlane:
    """Async context manager. Every call is idempotent, and is retried for `patience` seconds if a retry can help.

    It is the `Backbone` of engine and watchers. Other calls raise `Refused` (definitive, with a code of docs/errors.md)
    or `Unreachable` (may have been executed).
    """

    def __init__(
        self,
        settings: Settings,
        clock: DatabaseClock,
        *,
        witness: Witness | None = None,
        auth: Callable[[aiohttp.ClientSession], Auth] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._witness = witness
        self._sleep = sleep
        self._best_ms = math.inf
        self._http = _new_http(settings.url, CONNECTIONS)
        self._own_http = _new_http(settings.url, OWN_CONNECTIONS)
        self.owners = Owners()
        self.tokens = Tokens(auth(self._own_http) if auth else SupabaseAuth(settings, self._own_http), sleep=sleep)
        self._rpc = f"{settings.rest_url}/rpc/"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()
        await self._own_http.close()

    # -- Backbone: for the engine and the watchers -----------------------------------------------------------

    async def queue_trade_copy(self, account_id: AccountId, epoch: int, events: Sequence[Event]) -> QueueAnswer:
        """Retries until delivered. Raises `BackboneRefused`, `BackboneCutOff`."""
        encoded = [encode.event_to_json(event) for event in events]
        argument = {"account_id": account_id, "epoch": epoch, "events": encoded, **self._claims()}
        raw = await self._deliver("queue_trade_copy", "p_events", argument, len(events), account_id)
        return QueueAnswer(
            results=encode.event_results(raw.get("results")), executions=decode.executions_of_answer(raw)
        )

    async def report_executions(self, reports: Sequence[Report]) -> ReportAnswer:
        """Send reports of one owner. Retries until delivered. Raises `BackboneRefused`, `BackboneCutOff`."""
        argument = {"reports": [encode.report_to_json(report) for report in reports], **self._claims()}
        raw = await self._deliver("report_executions", "p_reports", argument, len(reports), reports[0].account_id)
        return ReportAnswer(
            results=encode.report_results(raw.get("results")), executions=decode.executions_of_answer(raw)
        )

    async def _deliver(
        self, name: str, parameter: str, argument: Mapping[str, object], items: int, account: AccountId
    ) -> json_fields.Json:
        """Retry until delivered. A call that is too much for one statement raises `BackboneCutOff`: the caller then
        sends it in parts."""
        try:
            answer = await self.call(
                name, parameter, argument, patience=math.inf, in_parts=items > 1, account=account, rank=TRADES
            )
            return json_fields.as_object(answer, name)
        except Refused as error:
            raise BackboneRefused(error.code or f"HTTP {error.status}", error.message) from error
        except CutOff as error:
            raise BackboneCutOff(error.message) from error

    # -- accounts --------------------------------------------------------------------------------------------

    async def open_session(self, account_id: AccountId, epoch: int, *, can_trade: bool = True) -> Session:
        """`can_trade`: False for a login with a read-only (investor) password, which does not prove that the account is
        the user's (docs/protocol.md)."""
        answer = await self._call_of(account_id, "open_session", epoch, can_trade=can_trade)
        raw = json_fields.as_object(answer, "session")
        return Session(
            json_fields.integer(raw, "session"),
            json_fields.optional_integer(raw, "continues"),
            json_fields.instant(raw, "begins_at"),
        )

    async def report_account_state(self, state: Mapping[str, object]) -> int | None:
        """`state`: the request of docs/protocol.md; it may hold Decimals and datetimes. Returns `look_again_ms` of the
        answer."""
        account = AccountId(str(state["account_id"]))
        raw = json_fields.as_object(
            await self.call("report_account_state", "p_state", state, account=account), "account state"
        )
        return json_fields.optional_integer(raw, "look_again_ms")

    async def credentials(self, account_id: AccountId, epoch: int) -> Credentials:
        raw = json_fields.as_object(await self._call_of(account_id, "account_credentials", epoch), "credentials")
        return Credentials(
            login=json_fields.text(raw, "login"),
            server=json_fields.optional_text(raw, "server") or "",
            password=json_fields.optional_text(raw, "password") or "",
            address=json_fields.optional_text(raw, "address") or "",
            settings=json_fields.as_object(raw.get("settings") or {}, "settings"),
            revision=json_fields.integer(raw, "revision"),
        )

    async def _call_of(self, account_id: AccountId, name: str, epoch: int, **more: object) -> object:
        request = {"account_id": account_id, "epoch": epoch, **more}
        return await self.call(name, "p_request", request, account=account_id, rank=SESSIONS)

    # -- the agent itself ------------------------------------------------------------------------------------

    async def heartbeat(self, figures: Mapping[str, object], lease: Lease) -> tuple[decode.Heartbeat, float]:
        """Send one heartbeat, without a retry; renews `lease`. Returns the answer and the round trip in ms."""
        sent_at_boot = boot_time()
        request = {"protocol_version": decode.PROTOCOL_VERSION, **figures, **self._claims()}
        raw = await self.call("vps_heartbeat", "p_heartbeat", request, patience=0, limit=HEARTBEAT_TIMEOUT)
        rtt_ms = (boot_time() - sent_at_boot) * 1000
        if (spoken := decode.protocol_of(raw)) < decode.OLDEST_PROTOCOL:
            raise Refused(
                "vps_heartbeat", f"the database speaks protocol {spoken}, this agent needs {decode.OLDEST_PROTOCOL}",
                code=DATABASE_TOO_OLD,
                hint="run the migrations of this agent's version on the database, or install the agent that fits it",
            )  # fmt: skip
        answer = decode.heartbeat_from_json(raw)
        lease.renew(sent_at_boot, answer.lease_ms)
        self.owners.learn(answer.assignments)
        return answer, rtt_ms

    def _measure_clock(self, answer: object, left_at: float, back_at: float) -> None:
        """Measure the clock with one call, if it was under way about as shortly as the best recent ones. `left_at` and
        `back_at`: boot time in seconds. Stamps that cannot be read measure nothing; the answer counts all the same."""
        try:
            stamps = decode.stamps(answer)
            if stamps is None:
                return
            received_at, sent_at = stamps
            under_way_ms = (back_at - left_at - (sent_at - received_at).total_seconds()) * 1000
            if under_way_ms > 0:  # else a clock was set during the call
                self._best_ms = min(under_way_ms, self._best_ms * RTT_FORGET)
            if under_way_ms <= self._best_ms * 2 + RTT_SLACK_MS:
                self._clock.measure(left_at, received_at, sent_at, back_at)
        except (json_fields.WireError, OverflowError) as error:
            log.warning("clock_not_measured", extra={"error": str(error)})

    def _claims(self) -> dict[str, object]:
        return {} if self._witness is None else self._witness.claims()

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
        account: AccountId | None = None,
        rank: int = STATES,
    ) -> object:
        """Call a function with one jsonb argument and return its JSON. Retries for about `patience` seconds (0: one
        attempt).

        `in_parts`: the caller can send less at once, so a statement that was cut off raises `CutOff` instead of being
        retried. `account`: every attempt waits for a turn of this account's owner, lower `rank` first; None: a call of
        the agent itself, which does not wait.
        """
        body = json_fields.dumps({parameter: argument})
        if len(body) > MAX_BODY_BYTES:
            raise Refused(
                name,
                f"{len(body)} bytes are over the limit of {MAX_BODY_BYTES}",
                code="TC002",
                hint="send less at once",
            )
        waits = backoff(0.05, 5)
        waited = 0.0
        while True:
            try:
                answer = await self._attempt_in_turn(name, body, limit, account, rank)
                if self._witness is not None and isinstance(answer, dict):
                    self._witness.take_answer(answer, argument)
                return answer
            except (Unreachable, SignInRefused) as error:
                # A refused sign-in says nothing about the call: what must be delivered waits until an operator has
                # fixed the sign-in.
                refused = isinstance(error, SignInRefused) and patience != math.inf
                if refused or (in_parts and isinstance(error, CutOff)):
                    raise
                wait = next(waits)
                if waited + wait > patience:
                    raise
                waited += wait
                log.warning("call_retried", extra={"call": name, "error": error.message, "wait_ms": round(wait * 1000)})
                await self._sleep(wait)

    async def _attempt_in_turn(
        self, name: str, body: bytes, limit: aiohttp.ClientTimeout, account: AccountId | None, rank: int
    ) -> object:
        if account is None:
            return await self._attempt(name, body, limit)
        async with self.owners.turn(account, rank):
            try:
                answer = await self._attempt(name, body, limit)
            except (TimedOut, CutOff):
                self.owners.timed_out(account)
                raise
            except Refused:
                self.owners.went_well(account)
                raise
            self.owners.went_well(account)
            return answer

    async def _attempt(self, name: str, body: bytes, limit: aiohttp.ClientTimeout) -> object:
        """One attempt; measures the clock. If the token is refused, it is renewed once and the request repeated."""
        token = await self.tokens.access()
        left_at = boot_time()
        status, data = await self._post(name, body, token, limit)
        if status >= 300 and classify(status, _error_of(data)[0]) == "sign_in":
            token = await self.tokens.renew(rejected=token)
            left_at = boot_time()
            status, data = await self._post(name, body, token, limit)
        back_at = boot_time()
        if status >= 300:
            raise _failed(name, status, data)
        try:
            answer = json_fields.loads(data)
        except json_fields.WireError as error:
            raise Unreachable(name, f"the answer is not JSON ({len(data)} bytes)") from error
        self._measure_clock(answer, left_at, back_at)
        return answer

    async def _post(self, name: str, body: bytes, token: str, limit: aiohttp.ClientTimeout) -> tuple[int, bytes]:
        headers = {
            "apikey": self._settings.publishable_key,
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
        }
        http = self._own_http if name == "vps_heartbeat" else self._http
        try:
            async with http.post(
                self._rpc + name, data=body, headers=headers, timeout=limit, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except aiohttp.ConnectionTimeoutError as error:
            raise Unreachable(name, f"no connection within {limit.connect} s") from error
        except TimeoutError as error:
            raise TimedOut(name, f"no answer within {limit.total} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(name, unreachable.reason(error)) from error


def _new_http(url: str, connections: int) -> aiohttp.ClientSession:
    """Idle connections are kept for longer than the pause between heartbeats, so that a trade never waits for a TLS
    handshake."""
    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=60, ttl_dns_cache=300)
    return aiohttp.ClientSession(connector=connector, trust_env=not on_this_machine(url), auto_decompress=True)


def _error_of(data: bytes) -> tuple[str | None, str, str | None]:
    """(code, message, hint) of PostgREST's error object; for a gateway's HTML page no code and no hint."""
    try:
        raw = json_fields.as_object(json_fields.loads(data), "error")
    except json_fields.WireError:
        return None, "the server's answer is not JSON", None
    code, message, hint = raw.get("code"), raw.get("message") or raw.get("msg") or raw.get("error"), raw.get("hint")
    return (
        (code if isinstance(code, str) else None),
        str(message or "no message"),
        (hint if isinstance(hint, str) else None),
    )


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
        address=credentials.address,
        mode=mode,
        currency=currency,
        settings=credentials.settings,
    )


__all__ = ["ControlPlane", "Credentials", "Refused", "Session", "SignInRefused", "Unreachable", "login_of"]
