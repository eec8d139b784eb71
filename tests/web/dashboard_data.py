"""A user, an agent and their accounts on a running stack; the harness calls the functions that users and agents
call."""

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import aiohttp

from agent.stack.stack import Stack

Json = dict[str, Any]

EURUSD: Json = {
    "name": "EURUSD", "contract_size": "100000", "digits": 5, "tick_size": "0.00001", "profit_currency": "USD",
    "margin_currency": "EUR", "lots_min": "0.01", "lots_max": "50", "lots_step": "0.01", "stops_level_points": 0,
    "trade_mode": "full", "bid": "1.10000", "ask": "1.10010",
}  # fmt: skip
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Person:
    """A user who can sign in."""

    user_id: str
    email: str
    password: str = field(repr=False)


@dataclass(slots=True)
class Account:
    """An account that the desk's agent works."""

    account_id: str
    name: str
    epoch: int
    session: int = 0
    sequence: int = 0
    #: what the agent's heartbeats say of it
    status: str = "connected"
    error: str | None = None

    def next(self) -> int:
        self.sequence += 1
        return self.sequence


class Desk:
    """One VPS with its agent, and users of its own on the stack. Every method renews its lease first.

    Async context manager.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._http = aiohttp.ClientSession(stack.url)
        self.agent = ""
        self.vps = ""
        self.number = next(_numbers)
        self._worked: list[Account] = []
        self._last: Json = {}

    async def __aenter__(self) -> Self:
        self.agent, _ = await self.stack.create_user(f"agent-{self.number}@example.com")
        await self._service("save_broker_server", "p_request", {
            "platform": "paper", "server": "Paper", "title": "Practice", "address": "127.0.0.1:7000",
        })  # fmt: skip
        token = await self._service("create_enrollment_token", "p_request", {"name": self.name})
        enrolled = await self._service("enroll_vps", "p_request", {
            "token": token["token"], "name": self.name, "platforms": ["paper"], "capacity": 50, "user_id": self.agent,
            "secret_hash": "0" * 64,
        })  # fmt: skip
        self.vps = enrolled["vps_id"]
        await self.beat()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    @property
    def name(self) -> str:
        """What the VPS is called."""
        return f"vps-{self.number}"

    async def person(self, name: str) -> Person:
        email = f"{name}-{self.number}@example.com"
        user_id, password = await self.stack.create_user(email)
        return Person(user_id, email, password)

    async def operator(self) -> Person:
        made = await self.person("operator")
        await self.stack.call("grant_operator", {"p_email": made.email})
        return made

    async def beat(self) -> Json:
        return await self.call(
            self.agent, "vps_heartbeat", "p_heartbeat",
            {"protocol_version": 2, "agent_version": "1.2.3", "cpu_percent": 12, "memory_percent": 40,
             "disk_percent": 10, "rss_mb": 80, "accounts": [
                 {"account_id": one.account_id, "session": one.session, "status": one.status, "error": one.error}
                 for one in self._worked]},
        )  # fmt: skip

    async def account(self, owner: Person, name: str, *, balance: str = "10000") -> Account:
        """Connect an account and report it as connected, with figures, one symbol and an empty book."""
        request = {
            "user_id": owner.user_id,
            "platform": "paper",
            "server": "Paper",
            "login": str(next(_numbers)),
            "password": "x",
        }
        made = await self._service("connect_account", "p_account", request | {"name": name, "vps_id": self.vps})
        assignments = (await self.beat())["assignments"]
        account = Account(
            made["account_id"], name, next(a["epoch"] for a in assignments if a["account_id"] == made["account_id"])
        )
        opened = await self.as_agent(
            "open_session", "p_request", {"account_id": account.account_id, "epoch": account.epoch}
        )
        account.session = opened["session"]
        await self.as_agent("report_account_state", "p_state", {
            "account_id": account.account_id, "epoch": account.epoch, "session": account.session, "status": "connected",
            "currency": "USD", "mode": "hedging", "leverage": 100, "balance": balance, "equity": balance, "margin": "0",
            "free_margin": balance, "measured_at": _now(), "symbols": [EURUSD | {"quoted_at": _now()}],
        })  # fmt: skip
        await self.events(account, {"type": "snapshot", "positions": [], "unchanged_at": None})
        self._worked.append(account)
        await self.beat()
        return account

    async def trouble(self, account: Account, error: str) -> None:
        """The agent reports that the account no longer works normally; `error` begins with a code."""
        account.status, account.error = "degraded", error
        await self.as_agent("report_account_state", "p_state", {
            "account_id": account.account_id, "epoch": account.epoch, "session": account.session, "status": "degraded",
            "error": error,
        })  # fmt: skip

    async def copier(self, owner: Person, master: Account, follower: Account, **columns: object) -> str:
        request = {"master_account_id": master.account_id, "follower_account_id": follower.account_id} | columns
        return str((await self.call(owner.user_id, "save_copier", "p_copier", request))["copier_id"])

    async def opens(self, master: Account, lots: str = "1.00") -> Json:
        """The master buys; returns the first resulting execution, or nothing."""
        position = {
            "ticket": str(next(_numbers)),
            "kind": "position",
            "symbol": "EURUSD",
            "side": "buy",
            "lots": lots,
            "price": "1.10000",
        }
        self._last = position
        answer = await self.events(master, {"type": "opened", "position": position, "unchanged_at": _now()})
        executions: list[Json] = answer["executions"]
        return executions[0] if executions else {}

    async def closes(self, master: Account) -> Json:
        """The master closes what it opened last; returns the first resulting execution, or nothing."""
        position = self._last | {"lots": "0"}
        event = {"type": "closed", "position": position, "unchanged_at": _now(), "evidence": "deal"}
        executions: list[Json] = (await self.events(master, event))["executions"]
        return executions[0] if executions else {}

    async def pending(self, owner: Person, name: str) -> None:
        """Connect an account that the agent never logs in to."""
        await self._service("connect_account", "p_account", {
            "user_id": owner.user_id, "platform": "paper", "server": "Paper", "login": str(next(_numbers)),
            "password": "x", "name": name, "vps_id": self.vps,
        })  # fmt: skip

    async def events(self, account: Account, event: Json) -> Json:
        body = {"session": account.session, "seq": account.next(), "detected_at": _now()} | event
        request = {"account_id": account.account_id, "epoch": account.epoch, "events": [body]}
        answer = await self.as_agent("queue_trade_copy", "p_events", request)
        assert [result["status"] for result in answer["results"]] == ["accepted"], answer
        return answer

    async def fills(self, follower: Account, execution: Json) -> str:
        """The follower's broker fills an open at 1.10010; returns the ticket."""
        held = {key: execution[key] for key in ("symbol", "side", "lots")}
        position = held | {
            "ticket": str(next(_numbers)),
            "kind": "position",
            "price": "1.10010",
            "tag": execution["id"],
        }
        await self._report(
            follower,
            execution,
            outcome="completed",
            filled_lots=execution["lots"],
            price="1.10010",
            positions=[position],
        )
        return str(position["ticket"])

    async def takes_off(self, follower: Account, execution: Json, ticket: str) -> None:
        """The follower's broker closes the whole position."""
        left = {key: execution[key] for key in ("symbol", "side")}
        position = left | {"ticket": ticket, "kind": "position", "lots": "0", "price": "1.10010"}
        await self._report(
            follower,
            execution,
            outcome="completed",
            filled_lots=execution["lots"],
            price="1.10010",
            positions=[position],
        )

    async def rejects(self, follower: Account, execution: Json, reason: str, message: str) -> None:
        await self._report(
            follower, execution, outcome="rejected", reason=reason, message=message, retryable=False, positions=[]
        )

    async def _report(self, follower: Account, execution: Json, **more: object) -> None:
        report = {
            "account_id": follower.account_id, "session": follower.session, "seq": follower.next(),
            "execution_id": execution["id"], "attempt": execution["attempt"],
            "received_at": _now(), "sent_at": _now(), "done_at": _now(),
        } | more  # fmt: skip
        answer = await self.as_agent("report_executions", "p_reports", {"reports": [report]})
        assert [result["status"] for result in answer["results"]] == ["accepted"], answer

    async def as_agent(self, function: str, parameter: str, argument: Mapping[str, object]) -> Json:
        await self.beat()
        return await self.call(self.agent, function, parameter, argument)

    async def call(self, user_id: str, function: str, parameter: str, argument: Mapping[str, object]) -> Json:
        """Call a function as this user, with a token like those that the stack's Auth issues."""
        now = int(time.time())
        claims = {"sub": user_id, "aud": "authenticated", "role": "authenticated", "iat": now, "exp": now + 300}
        headers = {"apikey": self.stack.publishable_key, "authorization": f"Bearer {self.stack.keys.sign(claims)}"}
        async with self._http.post(f"/rest/v1/rpc/{function}", json={parameter: argument}, headers=headers) as response:
            answer: Json = await response.json()
            assert response.status == 200, (function, answer)
            return answer

    async def _service(self, function: str, parameter: str, argument: Mapping[str, object]) -> Json:
        answer = await self.stack.call(function, {parameter: argument})
        assert isinstance(answer, dict)
        return answer


def _now() -> str:
    return datetime.now(UTC).isoformat()
