"""Finds out when nothing is in flight: every account's mirror in the database equals its broker's book, and no
execution is open.

The book is read before the database. If an order is executed in between, the mirror differs from the book, and the next
look decides.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

import psycopg
from psycopg.rows import dict_row

from agent.model import Position
from agent.paper.client import PaperClient
from agent.paper.records import Holdings

PAUSE_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """An account of a run: its name, its id in the database, its login at the broker."""

    name: str
    account_id: str
    login: str


@dataclass(frozen=True, slots=True)
class Flight:
    """What is in flight, as text. `now`: what still has to happen; `later`: what is retried at a later time."""

    now: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    @property
    def quiet(self) -> bool:
        return not self.now and not self.later


class Hanging(Exception):
    """Something has been in flight for too long."""

    def __init__(self, what: Iterable[str]) -> None:
        super().__init__("; ".join(what))


MIRROR = """
  select p.account_id::text, p.ticket, p.kind, p.symbol, p.side, p.lots, p.price, p.sl, p.tp
  from public.positions p where p.account_id = any(%(accounts)s::uuid[]) and p.closed_at is null"""
OPEN = """
  select q.id, q.account_id::text, q.action, q.symbol, q.lots, q.status, q.reason,
    q.next_attempt_at > clock_timestamp() as waits
  from public.trade_execution_queue q
  where q.account_id = any(%(accounts)s::uuid[]) and q.finalized_at is null order by q.id"""
LINKS = """
  select l.id, l.follower_account_id::text as account_id, l.symbol, l.wanted_lots is not null as wanted,
    coalesce(least(l.replan_at, l.order_due_at) > clock_timestamp(), false) as waits
  from public.position_links l
  where l.state = 'live' and l.follower_account_id = any(%(accounts)s::uuid[])
    and (l.replan_at is not null or l.wanted_lots is not null
      or l.order_due_at < clock_timestamp() + interval '10 seconds')
  union all  -- what a netting account's broker refused and is asked for again
  select 0, n.account_id::text, n.symbol, false, coalesce(n.replan_at > clock_timestamp(), false)
  from private.net_ledgers n
  where n.account_id = any(%(accounts)s::uuid[]) and n.failures > 0 and n.replan_at is not null"""
LOADING = """
  select w.follower_account_id::text as account_id, array_to_string(w.symbols, ' or ') as symbols
  from private.symbol_waits w where w.follower_account_id = any(%(accounts)s::uuid[])"""
STATES = """
  select a.id::text as account_id, a.status, a.status_reason, a.copy_state from public.trading_accounts a
  where a.id = any(%(accounts)s::uuid[])"""

Row = Mapping[str, object]


class Observer:
    """Reads brokers and database. `database`: connection string of a user that can read everything."""

    def __init__(self, database: str, paper: PaperClient) -> None:
        self._database = database
        self._paper = paper
        self._connection: psycopg.AsyncConnection[dict[str, object]] | None = None
        self._connecting = asyncio.Lock()

    def another(self) -> "Observer":
        """A second observer with its own connection, to be closed by the caller."""
        return Observer(self._database, self._paper)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def rows(self, statement: str, parameters: Mapping[str, object] | None = None) -> list[dict[str, object]]:
        """One query. Raises `psycopg.OperationalError` while the database is away; the next call connects again."""
        async with self._connecting:  # of two tasks that find no connection only one makes one
            connection = self._connection
            if connection is None or connection.closed or connection.broken:
                connection = self._connection = await psycopg.AsyncConnection.connect(
                    self._database, autocommit=True, row_factory=dict_row, connect_timeout=5
                )
        async with connection.cursor() as cursor:
            await cursor.execute(statement.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    async def look(self, accounts: Iterable[Worked], *, working: bool = True) -> Flight:
        """What is in flight now. `working`: an account that is not connected counts as in flight."""
        watched = {account.account_id: account for account in accounts}
        holdings = await asyncio.gather(*(self._paper.holdings(account.login) for account in watched.values()))
        books = dict(zip(watched, holdings, strict=True))
        parameters = {"accounts": list(watched)}
        try:
            states = await self.rows(STATES, parameters) if working else []
            mirror = await self.rows(MIRROR, parameters)
            loading = await self.rows(LOADING, parameters)  # before what comes of it: it must be in one of the two
            executions = await self.rows(OPEN, parameters)
            links = await self.rows(LINKS, parameters)
        except psycopg.OperationalError as error:
            return Flight(now=(f"the database does not answer ({str(error).splitlines()[0]})",))
        now = [
            f"{watched[str(state['account_id'])].name} is {state['status']}"
            f" ({state['status_reason'] or 'no reason given'})"
            for state in states
            if state["status"] != "connected"
        ]
        for key, account in watched.items():
            now.extend(_undelivered(account.name, books[key], [row for row in mirror if row["account_id"] == key]))
        later: list[str] = []
        for row in executions:
            name = watched[str(row["account_id"])].name
            text = f"execution {row['id']} of {name} ({row['action']} {row['symbol']} {row['lots']}) is {row['status']}"
            (later if row["waits"] else now).append(text + (f" ({row['reason']})" if row["reason"] else ""))
        for row in links:
            text = f"a copy of {row['symbol']} on {watched[str(row['account_id'])].name} is to be planned again"
            (later if row["waits"] and not row["wanted"] else now).append(text)
        later += [f"a copy on {watched[str(row['account_id'])].name} waits for {row['symbols']}" for row in loading]
        return Flight(tuple(now), tuple(later))

    async def wait_quiet(self, accounts: Iterable[Worked], *, limit_s: float = 10) -> None:
        """Wait until nothing is in flight. At the end of `limit_s` seconds, what is only retried later is accepted;
        anything else raises `Hanging`."""
        watched = tuple(accounts)
        end = time.monotonic() + limit_s
        while True:
            flight = await self.look(watched)
            if flight.quiet or (time.monotonic() >= end and not flight.now):
                return
            if time.monotonic() >= end:
                raise Hanging(flight.now)
            await asyncio.sleep(PAUSE_S)


def _undelivered(name: str, book: Holdings, mirror: list[dict[str, object]]) -> list[str]:
    """The differences between a book and its mirror, as text."""
    known = {(row["kind"], row["ticket"]): row for row in mirror}
    found = []
    for position in (*book.positions, *book.orders):
        row = known.pop((position.kind, position.ticket), None)
        if row is None:
            found.append(
                f"{name}: {position.kind} {position.ticket} ({position.symbol} {position.lots}) has not been reported"
            )
        elif not _same(position, row):
            found.append(
                f"{name}: a change of {position.kind} {position.ticket} ({position.symbol}) has not been reported"
            )
    found.extend(
        f"{name}: the end of {row['kind']} {ticket} ({row['symbol']}) has not been reported"
        for (_, ticket), row in known.items()
    )
    return found


def _same(position: Position, row: Row) -> bool:
    price = position.kind == "position" or _equal(position.price, row["price"])
    return (
        price
        and (position.kind, position.symbol, position.side) == (row["kind"], row["symbol"], row["side"])
        and _equal(position.lots, row["lots"])
        and _equal(position.sl, row["sl"])
        and _equal(position.tp, row["tp"])
    )


def _equal(one: Decimal | None, other: object) -> bool:
    return one == other if isinstance(other, Decimal) else (one or None) is other
