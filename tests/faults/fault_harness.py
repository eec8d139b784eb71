"""What fault tests stand on: one stack, one broker and a few agents per module; accounts of their own per test; the
money laws.

Everything is the product itself: agents are processes that were enrolled, orders go to the paper broker's process, and
what is asserted at the end is read from that broker's books and from its record of every request that ever reached it.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, cast

import psutil
import psycopg

from agent.failure import Failure
from agent.model import Placed, Side
from agent.paper.client import PaperClient, ticket_of
from agent.paper.profile import Profile
from agent.paper.records import RequestRecord
from agent.paper.specs import DEFAULT_PRICES
from agent.testbed.divergence import Book, Divergence, Settings, compare, wanted_by
from agent.testbed.farm import Farm, Opening, Vps
from agent.testbed.figures import book_of
from agent.testbed.quiescence import Hanging, Observer, Worked
from agent.testbed.supabase_client import Person
from agent.testbed.testbed import Testbed

LIMIT_S: Final = 30.0
LOOK_S: Final = 0.02

NOT_FINAL = """
  select q.id, q.action, q.status, q.reason from public.trade_execution_queue q
  where q.account_id = any(%(accounts)s::uuid[]) and q.finalized_at is null order by q.id"""
NUMBERS = "select q.id from public.trade_execution_queue q where q.account_id = %(account)s::uuid"
UNEXPLAINED = "select u.event_id, u.copier_id, u.type from public.unexplained_pairs u"
WHY_NOT = """
  select o.reason from public.copy_outcomes o
  join public.trade_events e on e.id = o.event_id join public.copiers c on c.id = o.copier_id
  where e.account_id = %(master)s::uuid and e.ticket = %(ticket)s and o.reason is not null
    and c.follower_account_id = %(follower)s::uuid
  union all
  select q.reason from public.trade_execution_queue q join public.position_links l on l.id = q.link_id
  where l.master_account_id = %(master)s::uuid and l.master_ticket = %(ticket)s and q.account_id = %(follower)s::uuid
    and q.action = 'open' and q.status in ('rejected', 'expired', 'cancelled')"""
CRON = "update cron.job set active = %(active)s where jobname like 'tradecopier-%%'"
EVENTS = """
  select e.session, e.seq, e.source, e.type, e.status, e.ticket, e.lots from public.trade_events e
  where e.account_id = %(account)s::uuid order by e.id desc limit 20"""
EXECUTIONS = """
  select q.* from public.trade_execution_queue q where q.account_id = %(account)s::uuid order by q.id"""
ASSIGNED = """
  select s.epoch, s.begins_at, v.id::text as vps_id, v.user_id::text as agent, v.status, a.session,
    a.status as account_status
  from public.account_vps_assignments s join public.vps_instances v on v.id = s.vps_id
  join public.trading_accounts a on a.id = s.account_id where s.account_id = %(account)s::uuid"""

Row = Mapping[str, object]
_numbers = itertools.count(1)


async def until(done: Callable[[], Awaitable[bool]], what: str, *, limit_s: float = LIMIT_S) -> None:
    """Wait for a condition of the database or the broker; an outage of either counts as not yet true."""
    end = time.monotonic() + limit_s
    while True:
        with suppress(psycopg.OperationalError):
            if await done():
                return
        if time.monotonic() > end:
            raise AssertionError(f"after {limit_s:g} s still waiting for: {what}")
        await asyncio.sleep(LOOK_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A copier of a desk and its settings."""

    copier_id: str
    follower: Worked
    settings: Settings


class Ground:
    """The parts that the tests of a module share."""

    def __init__(self, testbed: Testbed, owner: Person) -> None:
        self.testbed = testbed
        self.owner = owner

    @property
    def farm(self) -> Farm:
        return self.testbed.farm

    @property
    def paper(self) -> PaperClient:
        return self.farm.paper

    @property
    def observer(self) -> Observer:
        return self.farm.observer

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str) -> AsyncIterator["Ground"]:
        async with Testbed.open(name, say=lambda _: None) as testbed:
            owner = await testbed.farm.backend.sign_up(f"{name}@faults.test")
            await testbed.farm.paper.set_prices(DEFAULT_PRICES)
            yield cls(testbed, owner)

    # --- agents ---------------------------------------------------------------------------------------------

    async def vps(self, name: str) -> Vps:
        """The VPS of this name with its agent running; made at the first call."""
        known = self.farm.vpses.get(name)
        if known is None:
            [known] = await self.farm.add_vpses([name])
        elif not known.running:
            self.farm.start(known)
            await self.farm.wait_online(known)
        return known

    def agent_process(self, vps: Vps) -> psutil.Process:
        """The agent itself, not its guard."""
        assert vps.child is not None
        [agent] = psutil.Process(vps.child.pid).children()
        return agent

    async def kill(self, vps: Vps) -> None:
        """kill -9 of the agent; returns when its guard has gone, too."""
        self.farm.kill(vps)
        assert vps.child is not None
        await asyncio.to_thread(vps.child.stop)

    @asynccontextmanager
    async def frozen(self, *vpses: Vps) -> AsyncIterator[None]:
        """SIGSTOP, and SIGCONT at the end whatever happens: a paused machine."""
        processes = [self.agent_process(vps) for vps in vpses]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    # --- reading --------------------------------------------------------------------------------------------

    async def rows(self, statement: str, **parameters: object) -> list[dict[str, object]]:
        return await self.observer.rows(statement, parameters)

    async def one(self, statement: str, **parameters: object) -> object:
        [row] = await self.rows(statement, **parameters)
        return next(iter(row.values()))

    async def assigned(self, account: Worked) -> Row:
        [row] = await self.rows(ASSIGNED, account=account.account_id)
        return row

    async def executions(self, account: Worked) -> list[dict[str, object]]:
        return await self.rows(EXECUTIONS, account=account.account_id)

    async def as_agent(self, account: Worked, function: str, parameter: str, argument: Mapping[str, object]) -> object:
        """Call a function as the agent that the account is assigned to now."""
        return await self.testbed.call_as(str((await self.assigned(account))["agent"]), function, parameter, argument)

    async def setting(self, key: str, value: object) -> None:
        """Change a setting of the installation."""
        await self.rows(
            "update public.system_config set value = %(value)s::jsonb where key = %(key)s", key=key, value=str(value)
        )

    # --- accounts -------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def desk(
        self,
        master_on: Vps,
        followers_on: Sequence[Vps],
        *,
        ratio: Decimal = Decimal(1),
        profile: Profile | None = None,
        master_profile: Profile | None = None,
        **columns: object,
    ) -> AsyncIterator["Desk"]:
        """A master and its followers, each copying at `ratio`; `profile` is how the followers' broker treats orders,
        `master_profile` how the master's does."""
        number = next(_numbers)
        master = await self._account(f"{number}-M", master_on, master_profile)
        followers = [await self._account(f"{number}-F{n}", vps, profile) for n, vps in enumerate(followers_on, 1)]
        await self.farm.wait_connected([master, *followers])
        copies = []
        for follower in followers:
            made = await self.farm.save_copier(self.owner, master, follower, {"sizing_value": ratio, **columns})
            copies.append(Copy(copier_id=made, follower=follower, settings=Settings(value=ratio, symbols={})))
        desk = Desk(self, master, tuple(copies))
        try:
            yield desk
            await desk.settled(LIMIT_S)  # a copier that goes in the middle of a plan would leave an event unexplained
        finally:
            with suppress(Failure, psycopg.Error):
                for copy in copies:
                    await self.farm.drop_copier(copy.copier_id)
                for account in (master, *followers):
                    await self.farm.remove_account(self.owner, account)

    async def _account(self, login: str, vps: Vps, profile: Profile | None) -> Worked:
        return await self.farm.open_account(Opening(name=login, login=login, profile=profile), self.owner.user_id, vps)


class Desk:
    """The accounts of one test, and trades by hand on the master."""

    def __init__(self, ground: Ground, master: Worked, copies: tuple[Copy, ...]) -> None:
        self.ground = ground
        self.master = master
        self.copies = copies
        #: execution numbers that the database gave out and lost in a restore
        self._lost: set[object] = set()

    @property
    def followers(self) -> tuple[Worked, ...]:
        return tuple(copy.follower for copy in self.copies)

    @property
    def follower(self) -> Worked:
        """The only follower."""
        [follower] = self.followers
        return follower

    @property
    def accounts(self) -> tuple[Worked, ...]:
        return (self.master, *self.followers)

    async def open(self, symbol: str = "EURUSD", lots: str = "0.30", side: Side = "buy") -> str:
        return ticket_of(await self.ground.paper.market(self.master.login, symbol, side, Decimal(lots)))

    async def close(self, ticket: str, lots: str | None = None) -> None:
        result = await self.ground.paper.close_position(
            self.master.login, ticket, None if lots is None else Decimal(lots)
        )
        assert isinstance(result, Placed), result

    async def holds(self, count: int, *, of: Collection[Worked] | None = None) -> None:
        """Wait until these followers (None: all) hold the given number of positions."""
        watched = self.followers if of is None else of
        try:
            await asyncio.gather(
                *(self.ground.paper.wait_for(one.login, positions=count, timeout=LIMIT_S) for one in watched)
            )
        except TimeoutError:
            raise AssertionError(f"a follower does not come to hold {count}:\n{await self._story()}") from None

    async def sent(self, follower: Worked | None = None) -> tuple[RequestRecord, ...]:
        """Orders of agents that reached the broker, executed or not."""
        records = await self.ground.paper.requests((follower or self.follower).login)
        return tuple(record for record in records if record.origin == "expert")

    async def keep_numbers(self) -> None:
        """Call before a restore: the numbers that the database has given out until now remain known as given out."""
        for follower in self.followers:
            self._lost |= {row["id"] for row in await self.ground.rows(NUMBERS, account=follower.account_id)}

    async def first_execution(self, follower: Worked | None = None) -> int:
        """Number of the newest execution of a follower that is not final, once there is one."""
        found: list[int] = []

        async def there() -> bool:
            rows = await self.ground.executions(follower or self.follower)
            found[:] = [cast(int, row["id"]) for row in rows if row["finalized_at"] is None]
            return bool(found)

        await until(there, "an execution in flight")
        return found[-1]

    # --- the money laws -------------------------------------------------------------------------------------

    async def assert_money_laws(self, *, not_copied: Collection[str] = (), limit_s: float = LIMIT_S) -> None:
        """No number executed twice, nothing unexplained, every book as it should be, nothing in flight.

        `not_copied`: tickets of the master that were refused for a reason; that there is one is asserted, too.
        """
        await self.settled(limit_s)
        assert await self._executed_twice() == {}
        assert await self.ground.rows(UNEXPLAINED) == []
        for ticket in not_copied:
            for follower in self.followers:
                reasons = await self.ground.rows(
                    WHY_NOT, master=self.master.account_id, ticket=ticket, follower=follower.account_id
                )
                assert reasons, f"no reason says why {follower.name} has no copy of {ticket}"
        assert await self._divergence(not_copied) == Divergence(), await self._story()

    async def settled(self, limit_s: float) -> None:
        """Books and mirrors agree and every execution is final."""
        end = time.monotonic() + limit_s
        accounts = [account.account_id for account in self.accounts]
        while True:
            with suppress(psycopg.OperationalError):
                flight = await self.ground.observer.look(self.accounts)
                open_ones = await self.ground.rows(NOT_FINAL, accounts=accounts)
                if flight.quiet and not open_ones:
                    return
                if time.monotonic() > end:
                    raise Hanging([*flight.now, *flight.later, *(str(row) for row in open_ones)])
            assert time.monotonic() < end + LIMIT_S, "the database does not answer"
            await asyncio.sleep(LOOK_S)

    async def _executed_twice(self) -> dict[int, list[str]]:
        """Execution numbers that a broker executed more than once, or that the database never gave out."""
        wrong: dict[int, list[str]] = {}
        for follower in self.followers:
            given = self._lost | {row["id"] for row in await self.ground.rows(NUMBERS, account=follower.account_id)}
            for tag, records in (await self.ground.paper.requests_by_tag(follower.login)).items():
                done = [record.kind for record in records if record.outcome == "executed" and record.kind != "modify"]
                if len(done) > 1 or tag not in given:
                    wrong[tag] = [str(kind) for kind in done]
        return wrong

    async def _story(self) -> str:
        """Books and executions, for the message of a failed test."""
        lines = []
        for account in self.accounts:
            book = await self.ground.paper.book(account.login)
            lines.append(
                f"{account.name} holds {[(p.ticket, p.symbol, p.side, str(p.lots), p.tag) for p in book.positions]}"
            )
            for row in await self.ground.executions(account):
                columns = (
                    "id",
                    "action",
                    "symbol",
                    "lots",
                    "filled_lots",
                    "ticket",
                    "status",
                    "reason",
                    "message",
                    "adopted",
                )
                lines.append("  " + ", ".join(f"{name} {row[name]}" for name in columns))
        told = await self.ground.rows(EVENTS, account=self.master.account_id)
        lines += ["told of the master: " + ", ".join(f"{name} {value}" for name, value in row.items()) for row in told]
        return "\n".join(lines)

    async def _divergence(self, not_copied: Collection[str]) -> Divergence:
        paper = self.ground.paper
        master = _without(await book_of(paper, self.master.login), not_copied)
        found = Divergence()
        for copy in self.copies:
            book = await book_of(paper, copy.follower.login)
            found += compare(wanted_by(master, copy.settings, book), book)
        return found


def _without(book: Book, tickets: Collection[str]) -> Book:
    return replace(book, positions=tuple(position for position in book.positions if position.ticket not in tickets))


@asynccontextmanager
async def no_scheduler(ground: Ground) -> AsyncIterator[None]:
    """pg_cron is dead: none of its jobs runs.

    Leases keep their length: below twice the pause between two runs of maintain() each run would take the pause for an
    outage.
    """
    await ground.rows(CRON, active=False)
    try:
        yield
    finally:
        await ground.rows(CRON, active=True)
