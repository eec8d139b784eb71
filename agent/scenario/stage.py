"""The environment of a scenario: accounts at the paper broker, worked by the farm's agents, and injected faults."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import TracebackType
from typing import Protocol, Self

from agent.failure import Failure
from agent.model import SymbolSpec
from agent.paper.client import PaperClient
from agent.paper.specs import DEFAULT_PRICES, infer_spec
from agent.scenario.grammar import DEFAULT_SYMBOLS
from agent.scenario.script import Account, Drop, Price, Scenario, Symbol
from agent.testbed.farm import Farm, Opening, Vps
from agent.testbed.quiescence import Hanging, Observer, Worked
from agent.testbed.supabase_client import Person

#: the longest time that agents and database may need to recover after a fault of the script
RECOVERY_S = 60.0

COLUMNS = """
  select column_name from information_schema.columns where table_schema = 'public' and table_name = 'copiers'
    and column_name not in ('id', 'user_id', 'master_account_id', 'follower_account_id', 'created_at', 'updated_at',
      'removal', 'removed_at')"""
REASONS = """
  select reason, count(*)::integer as n from (
    select o.reason from public.copy_outcomes o join public.copiers c on c.id = o.copier_id
    where c.follower_account_id = %(account)s::uuid and o.reason is not null
    union all
    select q.reason from public.trade_execution_queue q
    where q.account_id = %(account)s::uuid and q.finalized_at is not null and q.status <> 'completed') r
  where reason <> all (private.nothing_to_do()) or reason = any(%(named)s::text[]) group by 1"""
EVENTS = """
  select e.payload from public.trade_events e
  where e.account_id = %(account)s::uuid and e.source = 'agent' and e.payload is not null and e.type <> 'snapshot'
    and e.status = 'accepted'
  order by e.id desc limit %(events)s"""
ASSIGNED = """
  select s.epoch, v.user_id::text from public.account_vps_assignments s join public.vps_instances v on v.id = s.vps_id
  where s.account_id = %(account)s::uuid"""

NOW = "select clock_timestamp()::text as now"
#: protected accounts that have not reported funds since, have an unconfirmed breach, or are being closed
UNPROTECTED = """
  select a.name, case when a.copy_state = 'flattening' then 'is being closed by its protection rule'
      when d.doubts then 'has a protection rule whose breach is not confirmed yet'
      else 'has not reported its funds' end as what
  from public.trading_accounts a
  cross join lateral (select bool_or(r.breached_at is not null and r.triggered_at is null) as doubts
    from public.protection_rules r where r.account_id = a.id and r.enabled) d
  where a.id = any(%(accounts)s::uuid[]) and (d.doubts or a.copy_state = 'flattening'
    or a.funds_at < %(since)s::timestamptz
    and exists (select from public.positions p where p.account_id = a.id and p.closed_at is null))"""


class Hands(Protocol):
    """Faults of the stack that only the process that runs it can cause."""

    async def drop_broadcasts(self) -> None:
        """Drop every broadcast to an agent from now on."""
        ...

    async def deliver_broadcasts(self) -> None: ...

    async def stop_database(self) -> None: ...
    async def start_database(self) -> None: ...

    async def call_as(self, user_id: str, function: str, parameter: str, argument: Mapping[str, object]) -> object:
        """Call a function of the database as this signed-in user."""
        ...


@dataclass(slots=True)
class Pool:
    """Agents that serve one scenario after another; an agent that a script kills permanently is not used again."""

    farm: Farm
    owner: Person
    hands: Hands
    _free: list[Vps] = field(default_factory=list)
    _made: int = 0

    async def take(self, count: int) -> list[Vps]:
        while len(self._free) < count:
            missing = count - len(self._free)
            names = [f"vps-{self._made + n + 1}" for n in range(missing)]
            self._made += missing
            self._free += await self.farm.add_vpses(names)
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def give_back(self, vpses: Iterable[Vps]) -> None:
        self._free += [vps for vps in vpses if vps.running]


class Stage:
    """Async context manager for one scenario; on exit its copiers are removed and its agents returned."""

    def __init__(self, scenario: Scenario, pool: Pool, number: int) -> None:
        self._scenario = scenario
        self._pool = pool
        self._number = number
        self._farm = pool.farm
        self.accounts: dict[str, Worked] = {}
        self._copiers: list[str] = []
        self._vps_of: dict[str, Vps] = {}
        self._outages: list[asyncio.Task[None]] = []
        #: accounts that must get a new session, with the number of their previous session
        self._awaited: dict[str, int] = {}
        #: accounts with a protection rule
        self._protected: list[str] = []
        #: whether a step has stopped all trading
        self._stopped = False

    @property
    def paper(self) -> PaperClient:
        return self._farm.paper

    @property
    def observer(self) -> Observer:
        return self._farm.observer

    # --- set-up and clean-up -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._check_columns()
        await self._set_first_prices()
        groups = list(dict.fromkeys(account.vps or f"own {name}" for name, account in self._scenario.accounts.items()))
        vpses = dict(zip(groups, await self._pool.take(len(groups)), strict=True))
        for name, account in self._scenario.accounts.items():
            vps = self._vps_of[name] = vpses[account.vps or f"own {name}"]
            await self._withhold_quotes(account)
            self.accounts[name] = await self._farm.open_account(self._opening(account), self._pool.owner.user_id, vps)
        await self.set_prices(self._scenario.prices)
        for account in self._scenario.accounts.values():
            await self._withhold_quotes(account)
        await self._farm.wait_connected(self.accounts.values())
        for copier in self._scenario.copiers:
            master, follower = self.accounts[copier.master], self.accounts[copier.follower]
            try:
                self._copiers.append(await self._farm.save_copier(self._pool.owner, master, follower, copier.columns))
            except Failure as error:
                raise error.at(f"{self._scenario.path}:{copier.line}") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for outage in self._outages:
            with suppress(Failure):
                await outage
        if self._stopped:
            await self.set_trading("on")
        for copier in self._copiers:
            with suppress(Failure):
                await self._farm.drop_copier(copier)
        for account in self.accounts.values():
            with suppress(Failure):
                await self._farm.remove_account(self._pool.owner, account)
        self._pool.give_back(dict.fromkeys(self._vps_of.values()))

    async def _check_columns(self) -> None:
        known = {str(row["column_name"]) for row in await self.observer.rows(COLUMNS)}
        for copier in self._scenario.copiers:
            if unknown := [name for name in copier.columns if name not in known]:
                raise Failure(
                    f"{self._scenario.path}:{copier.line}: a copier has no column {unknown[0]!r}",
                    f"use one of {', '.join(sorted(known))}",
                    code="TC640",
                )

    def _opening(self, account: Account) -> Opening:
        return Opening(
            name=account.name,
            login=self._login(account),
            currency=account.currency,
            balance=account.balance,
            leverage=account.leverage,
            mode=account.mode,
            symbols=specs_for(account.name, self._scenario.symbols),
            profile=account.broker,
        )

    def _login(self, account: Account) -> str:
        return f"{self._number}-{account.name}"

    async def _withhold_quotes(self, account: Account) -> None:
        """Before it connects, and again behind the first prices, which are only what orders are executed at."""
        if not account.quoted_at_first:
            await self.paper.withhold_quotes(self._login(account))

    async def _set_first_prices(self) -> None:
        """Reset the prices: they belong to the broker, and each file starts from the default ones."""
        await self.paper.set_prices(DEFAULT_PRICES)

    async def set_prices(self, prices: Iterable[Price]) -> None:
        for price in prices:
            login = None if price.account is None else self.accounts[price.account].login
            await self.paper.set_prices({price.symbol: (price.bid, price.ask)}, login=login)

    async def change_copier(self, index: int, columns: Mapping[str, object]) -> None:
        await self._farm.change_copier(self._pool.owner, self._copiers[index], columns)

    async def protect(self, account: str, settings: Mapping[str, object]) -> None:
        worked = self.accounts[account]
        await self._farm.protect(self._pool.owner, worked, settings)
        self._protected.append(worked.account_id)

    async def remove_copier(self, index: int, mode: str) -> None:
        await self._farm.remove_copier(self._pool.owner, self._copiers[index], mode)

    async def drift(self, index: int) -> dict[str, int]:
        """The number of differences that the copier's user sees, by reason."""
        items = await self._farm.copier_drift(self._pool.owner, self._copiers[index])
        return dict(Counter(str(item["reason"]) for item in items))

    async def resync(self, index: int, action: str, max_distance_points: Decimal | None) -> None:
        items = await self._farm.copier_drift(self._pool.owner, self._copiers[index])
        wanted = [{**item, "action": action} for item in items if action in _texts(item["actions"])]
        await self._farm.resync_copier(self._pool.owner, self._copiers[index], wanted, max_distance_points)

    async def set_trading(self, state: str) -> None:
        await self._farm.backend.rpc("set_trading", "p_request", {"state": state, "reason": "a step of a scenario"})
        self._stopped = state != "on"

    # --- faults ---------------------------------------------------------------------------------------------

    async def drop(self, step: Drop) -> None:
        """Outages start now and end while the script continues; a killed agent is restarted at once."""
        match step.what:
            case "broadcasts":
                await self._pool.hands.drop_broadcasts()
                self._outages.append(asyncio.create_task(_after(step.seconds, self._pool.hands.deliver_broadcasts)))
            case "database":
                await self.observer.close()
                await self._pool.hands.stop_database()
                self._outages.append(asyncio.create_task(_after(step.seconds, self._pool.hands.start_database)))
            case "agent":
                vps = self._vps_of[step.name]
                await self._await_new_sessions(vps)
                self._farm.kill(vps)
                self._farm.start(vps)
            case "vps":
                names = [name for name, account in self._scenario.accounts.items() if account.vps == step.name]
                vps = self._vps_of[(names or [step.name])[0]]
                await self._await_new_sessions(vps)
                self._farm.kill(vps)

    async def _await_new_sessions(self, vps: Vps) -> None:
        for name, its in self._vps_of.items():
            if its is vps:
                self._awaited[name] = await self._farm.session(self.accounts[name])

    async def replay(self, account: str, events: int) -> None:
        """Deliver the last events of `account` again, newest first, as its agent would: one call each."""
        worked = self.accounts[account]
        await self.settle(10)
        rows = await self.observer.rows(EVENTS, {"account": worked.account_id, "events": events})
        [assigned] = await self.observer.rows(ASSIGNED, {"account": worked.account_id})
        for row in rows:
            argument = {"account_id": worked.account_id, "epoch": assigned["epoch"], "events": [row["payload"]]}
            await self._pool.hands.call_as(str(assigned["user_id"]), "queue_trade_copy", "p_events", argument)

    # --- waiting and reading --------------------------------------------------------------------------------

    async def settle(self, limit_s: float) -> None:
        """Wait until the script's faults are over and the agents are back, then until nothing is in flight."""
        for outage in self._outages:
            await outage
        self._outages.clear()
        end = time.monotonic() + RECOVERY_S
        while self._awaited and time.monotonic() < end:
            for name, before in list(self._awaited.items()):
                if await self._farm.session(self.accounts[name]) > before:
                    del self._awaited[name]
            await asyncio.sleep(0.05)
        self._awaited.clear()
        await self.observer.wait_quiet(self.accounts.values(), limit_s=limit_s)
        if self._protected:
            await self._settle_protection(RECOVERY_S)
            await self.observer.wait_quiet(self.accounts.values(), limit_s=limit_s)

    async def _settle_protection(self, limit_s: float) -> None:
        """Wait until the rules of every protected account have been checked again and their actions are complete."""
        [row] = await self.observer.rows(NOW)
        end = time.monotonic() + limit_s
        parameters = {"accounts": self._protected, "since": str(row["now"])}
        while waiting := await self.observer.rows(UNPROTECTED, parameters):
            if time.monotonic() > end:
                raise Hanging(f"{one['name']} {one['what']}" for one in waiting)
            await asyncio.sleep(0.05)

    async def reasons(self, account: str, named: Iterable[str]) -> dict[str, int]:
        """Code → how often; of the codes that mean "nothing to do" only those that are `named`."""
        rows = await self.observer.rows(REASONS, {"account": self.accounts[account].account_id, "named": list(named)})
        return {str(row["reason"]): int(str(row["n"])) for row in rows}

    async def sent(self, account: str) -> int:
        """The number of orders that reached the broker from the account's agent, executed or not."""
        records = await self.paper.requests(self.accounts[account].login)
        return sum(1 for record in records if record.origin == "expert")


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


async def _after(seconds: float, then: Callable[[], Awaitable[None]]) -> None:
    await asyncio.sleep(seconds)
    await then()


def specs_for(account: str, symbols: Iterable[Symbol]) -> tuple[SymbolSpec, ...]:
    """Instruments of an account: the default ones, with the file's changes and additions.

    A name with a prefix or suffix (F.EURUSD.m) replaces the plain one: a broker offers only one of them.
    """
    own = [symbol for symbol in symbols if symbol.account in (None, account)]
    renamed = {
        plain for plain in DEFAULT_SYMBOLS if any(plain in symbol.name and plain != symbol.name for symbol in own)
    }
    kept = {symbol.name for symbol in own}
    specs = {name: infer_spec(name) for name in DEFAULT_SYMBOLS if name in kept or name not in renamed}
    for symbol in sorted(own, key=lambda one: one.account is not None):
        spec = specs.get(symbol.name) or infer_spec(symbol.name)
        specs[symbol.name] = _changed(spec, symbol)
    return tuple(specs.values())


def _changed(spec: SymbolSpec, symbol: Symbol) -> SymbolSpec:
    fields: dict[str, object] = dict(symbol.spec)
    if "digits" in fields and "tick_size" not in fields:
        fields["tick_size"] = Decimal(1).scaleb(-int(str(fields["digits"])))
    return replace(spec, **fields)  # type: ignore[arg-type]
