"""Load that one tenant can cause: calls of every user function, reads of the largest tables, renamed symbols."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx

from agent.testbed.farm import PLATFORM, SERVER, Opening, Vps
from agent.testbed.quiescence import Worked
from agent.testbed.supabase_client import Person
from agent.testbed.testbed import Testbed

Request = tuple[str, Mapping[str, object]]
PARAMETERS: Final = {"connect_account": "p_account", "save_copier": "p_copier", "save_protection_rule": "p_rule"}
TIMEOUT: Final = httpx.Timeout(20)
READERS: Final = 20
RENAMED: Final = 1000
#: limits: entries of a list, characters of an entry, symbols that one copier maps
ENTRIES: Final = 500
CHARACTERS: Final = 100
MAPPED: Final = 500
SETTINGS_BYTES: Final = 15_000
RULES: Final = {
    "daily_loss": "90",
    "trailing_drawdown": "90",
    "equity_floor": "1",
    "equity_target": "900000000",
    "max_margin_use": "999",
}
SYMBOL: Final[Mapping[str, object]] = {
    "contract_size": "100000", "digits": 5, "tick_size": "0.00001", "profit_currency": "USD", "lots_min": "0.01",
    "lots_max": "50", "lots_step": "0.01",
}  # fmt: skip
READS: Final = (
    "trade_execution_queue?select=*&order=id.desc&limit=1000",
    "trade_execution_queue?select=*&message=like.*nothing*&limit=1000",
    "copied_trades?select=*&limit=1000",
    "copy_outcomes?select=*&limit=1000&detail=like.*nothing*",
    "trade_events?select=*&limit=1000",
    "account_symbols?select=*&limit=1000&order=name.desc",
    "audit_log?select=*&limit=1000",
    "positions?select=*&limit=1000",
    "position_links?select=*&limit=1000&order=created_at.desc",
    "account_snapshots?select=*&limit=1000",
)


@dataclass(slots=True)
class Tenant:
    """A tenant that causes a lot of load: a master, its followers, and its HTTP client."""

    owner: Person
    master: Worked
    followers: list[Worked]
    #: by follower's account
    copiers: dict[str, str] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)


def at_the_limit() -> Iterator[dict[str, object]]:
    """Settings of a copier with every list at its limit and none blocking a trade, in parts that fit one call each."""
    wanted, left_out = ([f"*{mark}{n:04}".ljust(CHARACTERS, "x") for n in range(ENTRIES)] for mark in "ab")
    yield {"symbols_only": [*wanted[1:], "EUR*"], "symbols_except": left_out, "name": "n" * CHARACTERS}
    yield {"comment_only": [*wanted[1:], ""], "comment_except": left_out}
    magics = [str(10**18 + n) for n in range(2 * ENTRIES)]
    yield {"magic_only": [*magics[1:ENTRIES], "0"], "magic_except": magics[ENTRIES:]}


def mappings() -> dict[str, object]:
    return {"symbols": {f"M{n}".ljust(64, "X"): f"F{n}".ljust(64, "X") for n in range(MAPPED)}}


def requests_of(tenant: Tenant) -> dict[str, Callable[[int], Mapping[str, object]]]:
    """Each function that users may call, with the argument of its n-th call."""
    copiers = list(tenant.copiers.values())
    accounts = [follower.account_id for follower in tenant.followers]

    def copier(n: int) -> str:
        return copiers[n % len(copiers)]

    def account(n: int) -> str:
        return accounts[n % len(accounts)]

    funds = {"currency": "USD", "balance": "5000", "equity": "5000", "free_margin": "5000"}
    preview = {
        "copier": {},
        "master": funds | {"symbol": {}},
        "follower": funds | {"symbol": {**SYMBOL, "name": "EURUSD"}},
        "trade": {"side": "buy", "lots": "1.00", "price": "1.10000", "sl": None, "tp": None},
    }
    return {
        "save_copier": lambda n: {"id": copier(n), "name": f"changed {n}", "time_zone": "Europe/Berlin"},
        "set_copier_mode": lambda n: {"copier_id": copier(n), "mode": ("monitor", "on")[n % 2]},
        "copier_drift": lambda n: {"copier_id": copier(n)},
        "resync_copier": lambda n: {
            "copier_id": copier(n),
            "items": [{"kind": "missing", "master_ticket": "1", "action": "copy"}],
        },
        "symbol_suggestions": lambda n: {"copier_id": copier(n)},
        "preview_copy": lambda n: preview,
        "pause_account": lambda n: {"account_id": account(n), "state": ("monitor", "on")[n % 2]},
        "flatten_account": lambda n: {"account_id": account(n)},
        "save_protection_rule": lambda n: {
            "account_id": account(n),
            "kind": "equity_floor",
            "threshold": "1",
            "time_zone": "Asia/Tokyo",
        },
        "remove_protection_rule": lambda n: {"rule_id": account(n)},
        "reset_protection": lambda n: {"rule_id": account(n)},
        "mark_alert_seen": lambda n: {"alert_id": account(n)},
        "connect_account": lambda n: {"platform": PLATFORM, "server": SERVER, "login": f"again-{n}", "password": "x"},
        "update_account": lambda n: {"account_id": account(n), "name": f"renamed {n}"},
        "assign_account": lambda n: {"account_id": account(n)},
        "remove_account": lambda n: {"account_id": account(n)},
        "remove_copier": lambda n: {"copier_id": account(n), "mode": "preserve"},
    }


class Hammer:
    """HTTP requests of a tenant: every response is counted, and no request waits for the previous one."""

    def __init__(self, testbed: Testbed, tenant: Tenant) -> None:
        self._tenant = tenant
        self._token = {
            "apikey": testbed.farm.place.publishable_key,
            "authorization": f"Bearer {tenant.owner.token}",
        }
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        self._http = httpx.AsyncClient(
            base_url=f"{testbed.farm.place.url}/rest/v1", timeout=TIMEOUT, headers=self._token, limits=limits
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def call(self, name: str, argument: Mapping[str, object]) -> None:
        await self._count(name, self._http.post(f"/rpc/{name}", json={PARAMETERS.get(name, "p_request"): argument}))

    async def read(self, what: str) -> None:
        await self._count(what.partition("?")[0], self._http.get(f"/{what}"))

    async def _count(self, name: str, request: Awaitable[httpx.Response]) -> None:
        try:
            answer = await request
        except httpx.HTTPError as error:
            self._tenant.answers[f"{name} {type(error).__name__}"] += 1
        else:
            self._tenant.answers[f"{name} {answer.status_code}"] += 1


@asynccontextmanager
async def running(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run `work` in the background during the `with` block."""
    task = asyncio.ensure_future(work())
    try:
        yield
    finally:
        if not task.done():
            task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended


async def call_functions(testbed: Testbed, tenant: Tenant, seconds: float, per_second: float) -> None:
    """Call each user function in turn for this long at this rate; then start again."""
    hammer = Hammer(testbed, tenant)
    functions = requests_of(tenant)
    try:
        async with asyncio.TaskGroup() as group:
            while True:
                for name, argument in functions.items():
                    start = time.monotonic()
                    for n in range(int(seconds * per_second)):
                        await asyncio.sleep(max(0.0, start + n / per_second - time.monotonic()))
                        group.create_task(hammer.call(name, argument(n)))
    finally:
        await hammer.close()


async def read_tables(testbed: Testbed, tenant: Tenant) -> None:
    """Twenty readers, each requesting the next page of the largest tables as soon as it has one."""
    hammer = Hammer(testbed, tenant)

    async def reader(number: int) -> None:
        while True:
            await hammer.read(READS[number % len(READS)])
            number += 1

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(READERS):
                group.create_task(reader(number))
    finally:
        await hammer.close()


@dataclass(slots=True)
class Ghost:
    """A VPS without a process: this class sends what its agent would send."""

    testbed: Testbed
    agent: str
    account: Worked
    answer: str | None = None

    @classmethod
    async def enrol(cls, testbed: Testbed, tenant: Tenant) -> "Ghost":
        farm = testbed.farm
        token = await farm.backend.rpc("create_enrollment_token", "p_request", {"name": "ghost"})
        request = {"token": token["token"], "name": "ghost", "platforms": ["paper"], "capacity": 1}
        vps_id = str((await farm.backend.enroll(request))["vps_id"])
        [row] = await farm.observer.rows(
            "select user_id::text from public.vps_instances where id = %(vps)s::uuid", {"vps": vps_id}
        )
        ghost = cls(testbed, str(row["user_id"]), tenant.master)
        await ghost.beat()
        ghost.account = await farm.connect_account(
            Opening(name="ghost", login="ghost"), tenant.owner.user_id, Vps("ghost", vps_id, farm.folder)
        )
        return ghost

    async def beat(self) -> None:
        said: dict[str, object] = {"protocol_version": 2, "worked_through": self.answer, "unreadable": []}
        answer = await self.testbed.call_as(self.agent, "vps_heartbeat", "p_heartbeat", said)
        self.answer = str(answer["answer_id"]) if isinstance(answer, dict) and "answer_id" in answer else None

    async def rename(self, turn: int) -> None:
        """Report a thousand symbols under new names."""
        symbols = [{**SYMBOL, "name": f"EURUSD.{turn}.{n}", "margin_currency": "EUR"} for n in range(RENAMED)]
        state = {"account_id": self.account.account_id, "epoch": 1, "status": "connected", "symbols": symbols}
        await self.testbed.call_as(self.agent, "report_account_state", "p_state", state)


async def rename_symbols(ghost: Ghost, most: int = 9) -> None:
    """Rename repeatedly, with a second between two reports (a broker may list 10,000 symbols)."""
    turn = 0
    while True:
        await ghost.beat()
        if turn < most:
            await ghost.rename(turn)
            turn += 1
        await asyncio.sleep(1)


async def fill_tables(testbed: Testbed, tenant: Tenant, rows: int) -> None:
    """Insert years of trades of this tenant into the tables that grow."""
    values = {
        "user": tenant.owner.user_id,
        "account": tenant.followers[0].account_id,
        "master": tenant.master.account_id,
        "rows": rows,
    }
    for statement in FILL:
        await testbed.farm.observer.rows(statement, values)


FILL: Final[Sequence[str]] = (
    """insert into public.trade_execution_queue (step_id, lane, user_id, account_id, master_account_id, action,
      priority, symbol, side, lots, status, send_before, queued_at, updated_at, finalized_at, done_at)
       select n, 'bench', %(user)s::uuid, %(account)s::uuid, %(master)s::uuid, 'close', 10, 'EURUSD', 'buy', 0.1,
         'completed', at, at, at, at, at
       from generate_series(1, %(rows)s) n
       cross join lateral (select now() - make_interval(mins => 60 + n / 10) as at)""",
    """insert into public.audit_log (at, actor, action, entity, entity_id, user_id, details)
       select now() - make_interval(mins => n / 10), 'system', 'update', 'copiers', n::text, %(user)s::uuid, '{}'
       from generate_series(1, %(rows)s) n""",
    """insert into public.account_snapshots (account_id, at, balance, equity)
       select %(account)s::uuid, now() - make_interval(mins => n), 1, 1 from generate_series(1, %(rows)s) n
       on conflict do nothing""",
    """insert into public.positions (account_id, ticket, user_id, kind, symbol, side, lots, price, session, seq,
      closed_at, unseen_at, detected_at, first_seen_at, changed_at)
       select %(account)s::uuid, 'bench-' || n, %(user)s::uuid, 'position', 'EURUSD', 'buy', 0, 1.1, 1, 0, at, at, at,
         at, at
       from generate_series(1, %(rows)s) n cross join lateral (select now() - interval '1 hour' as at)""",
)
