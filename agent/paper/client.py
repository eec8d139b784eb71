"""`PaperClient`: the paper broker for operators and for the account's human trader.

    async with await PaperClient.connect(process.address, process.token) as paper:
        await paper.open_book("1001", balance=Decimal(10000))
        await paper.set_prices({"EURUSD": (Decimal("1.10000"), Decimal("1.10010"))})
        placed = await paper.market("1001", "EURUSD", "buy", Decimal("0.10"))

Every order method trades as the account's human (`reason` client), without latency or injected faults. The result is
`Placed`, or `Rejected` with a reason of docs/errors.md. A lost connection raises `PaperLost`; an invalid request raises
`PaperRefused` (unknown login, malformed figures).
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Self

from agent.model import AccountState, Mode, Placed, Position, Quote, Rejected, Side, SymbolSpec
from agent.paper.broker import HALF
from agent.paper.connection import Connection, PaperLost, PaperRefused
from agent.paper.messages import decode
from agent.paper.profile import Profile
from agent.paper.records import (
    Answer,
    BookView,
    Holdings,
    JournalEntry,
    OrderFault,
    Request,
    RequestKind,
    RequestRecord,
    SnapshotFault,
)
from agent.paper.refusals import rejected

__all__ = ["PaperClient", "PaperLost", "PaperRefused"]

Prices = Mapping[str, tuple[Decimal, Decimal]]


class PaperClient:
    """One operator connection to a running paper broker. All calls may be made concurrently."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, address: str, token: str, *, timeout: float = 5.0) -> Self:  # noqa: ASYNC109
        """Connect. `address` is host:port."""
        connection = await Connection.open(address, timeout=timeout)
        try:
            await connection.call("hello", token=token)
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    # --- books, symbols, prices, time ----------------------------------------------------------------

    async def open_book(
        self,
        login: str,
        *,
        currency: str = "USD",
        balance: Decimal = Decimal(10000),
        leverage: int = 100,
        mode: Mode = "hedging",
        symbols: Iterable[SymbolSpec] | None = None,
        profile: Profile | None = None,
    ) -> AccountState:
        """Open an account.

        `symbols` None: the default instruments, otherwise exactly these. An existing login is refused.
        """
        reply = await self._connection.call(
            "open_book",
            login=login,
            currency=currency,
            balance=balance,
            leverage=leverage,
            mode=mode,
            symbols=None if symbols is None else tuple(symbols),
            profile=profile,
        )
        found: AccountState = decode(AccountState, reply)
        return found

    async def set_passwords(
        self, login: str, *, password: str | None = None, investor_password: str | None = None
    ) -> None:
        """Set both passwords of an account.

        Without `password` the next login sets it; without `investor_password` there is none.
        """
        await self._connection.call(
            "set_passwords", login=login, password=password, investor_password=investor_password
        )

    async def books(self) -> tuple[str, ...]:
        """The logins of all books."""
        found: tuple[str, ...] = decode(tuple[str, ...], await self._connection.call("books"))
        return found

    async def book(self, login: str) -> BookView:
        found: BookView = decode(BookView, await self._connection.call("book", login=login))
        return found

    async def holdings(self, login: str) -> Holdings:
        """The open positions and pending orders; unlike `book`, its size does not grow with what was ever closed."""
        found: Holdings = decode(Holdings, await self._connection.call("holdings", login=login))
        return found

    async def put_symbols(self, login: str, symbols: Iterable[SymbolSpec]) -> None:
        """Add instruments to a book, or change existing ones (for example `trade_mode`)."""
        await self._connection.call("put_symbols", login=login, symbols=tuple(symbols))

    async def rename(self, login: str, old: str, new: str) -> None:
        """Give a symbol of a book another name; its quote, positions and orders follow."""
        await self._connection.call("rename", login=login, old=old, new=new)

    async def deposit(self, login: str, amount: Decimal) -> None:
        """Book a deposit (negative: withdrawal) in the account's currency."""
        await self._connection.call("deposit", login=login, amount=amount)

    async def set_prices(self, prices: Prices, *, login: str | None = None) -> None:
        """Set (bid, ask) per symbol, for all books or for one; everything that they trigger happens before this
        returns.

        A symbol without prices of its own uses those of its plain name (EURUSD.m uses EURUSD).
        """
        await self._connection.call(
            "set_prices", login=login, prices={name: [str(b), str(a)] for name, (b, a) in prices.items()}
        )

    async def withhold_quotes(self, login: str) -> None:
        """Show the account's programs no quote of a symbol before its next price."""
        await self._connection.call("withhold_quotes", login=login)

    async def quote(self, login: str, symbol: str) -> Quote | None:
        found: Quote | None = decode(Quote | None, await self._connection.call("quote", login=login, symbol=symbol))
        return found

    async def start_feed(
        self, *, symbols: Iterable[str] | None = None, seed: int = 1, interval: timedelta = timedelta(milliseconds=250)
    ) -> None:
        """Start a seeded random walk over `symbols` (None: the default instruments) from their current prices."""
        names = None if symbols is None else tuple(symbols)
        await self._connection.call("start_feed", symbols=names, seed=seed, interval_s=interval.total_seconds())

    async def stop_feed(self) -> None:
        await self._connection.call("stop_feed")

    async def now(self) -> datetime:
        found: datetime = decode(datetime, await self._connection.call("now"))
        return found

    async def advance(self, by: timedelta) -> datetime:
        """Advance a virtual clock (latencies end, orders expire); refused when the broker runs on the real clock."""
        found: datetime = decode(datetime, await self._connection.call("advance", seconds=by.total_seconds()))
        return found

    # --- trading as the account's human --------------------------------------------------------------

    async def submit(self, login: str, request: Request) -> Placed | Rejected:
        """Submit any request; the methods below are shorthands for it."""
        answer: Answer = decode(Answer, await self._connection.call("order", login=login, request=request))
        if answer.status == "done":
            return Placed(lots=answer.lots, price=answer.price, positions=answer.positions)
        return rejected(answer.reason or "rejected", answer.message)

    async def market(
        self,
        login: str,
        symbol: str,
        side: Side,
        lots: Decimal,
        *,
        sl: Decimal | None = None,
        tp: Decimal | None = None,
        magic: int = 0,
        comment: str = "",
    ) -> Placed | Rejected:
        return await self.submit(
            login,
            Request(kind="market", symbol=symbol, side=side, lots=lots, sl=sl, tp=tp, magic=magic, comment=comment),
        )

    async def limit(
        self,
        login: str,
        symbol: str,
        side: Side,
        lots: Decimal,
        price: Decimal,
        *,
        sl: Decimal | None = None,
        tp: Decimal | None = None,
        expires_at: datetime | None = None,
        magic: int = 0,
        comment: str = "",
    ) -> Placed | Rejected:
        """Place a pending order that fills at `price` or better."""
        request = Request(
            kind="pending", order_type="limit", symbol=symbol, side=side, lots=lots, price=price, sl=sl, tp=tp,
            expires_at=expires_at, magic=magic, comment=comment,
        )  # fmt: skip
        return await self.submit(login, request)

    async def stop(
        self,
        login: str,
        symbol: str,
        side: Side,
        lots: Decimal,
        price: Decimal,
        *,
        sl: Decimal | None = None,
        tp: Decimal | None = None,
        expires_at: datetime | None = None,
        magic: int = 0,
        comment: str = "",
    ) -> Placed | Rejected:
        """Place a pending order that fills at the market once `price` is reached."""
        request = Request(
            kind="pending", order_type="stop", symbol=symbol, side=side, lots=lots, price=price, sl=sl, tp=tp,
            expires_at=expires_at, magic=magic, comment=comment,
        )  # fmt: skip
        return await self.submit(login, request)

    async def close_position(self, login: str, ticket: str, lots: Decimal | None = None) -> Placed | Rejected:
        """Close `lots` of a position; None: all of it."""
        return await self.submit(login, Request(kind="close", ticket=ticket, lots=lots))

    async def close_symbol(self, login: str, symbol: str) -> tuple[Placed | Rejected, ...]:
        """Close every position in `symbol`."""
        held = [position for position in (await self.book(login)).positions if position.symbol == symbol]
        return tuple([await self.close_position(login, position.ticket) for position in held])

    async def close_by(self, login: str, ticket: str, other_ticket: str) -> Placed | Rejected:
        """Close two opposite positions of one symbol against each other; the difference in volume stays open."""
        return await self.submit(login, Request(kind="close_by", ticket=ticket, other_ticket=other_ticket))

    async def modify(self, login: str, ticket: str, *, sl: Decimal | None, tp: Decimal | None) -> Placed | Rejected:
        """Set both levels of a position; None removes a level."""
        return await self.submit(login, Request(kind="modify", ticket=ticket, sl=sl, tp=tp))

    async def amend(
        self,
        login: str,
        ticket: str,
        *,
        price: Decimal,
        sl: Decimal | None = None,
        tp: Decimal | None = None,
        expires_at: datetime | None = None,
    ) -> Placed | Rejected:
        """Set price, both levels and expiry of a pending order; None removes a level or the expiry."""
        request = Request(kind="amend", ticket=ticket, price=price, sl=sl, tp=tp, expires_at=expires_at)
        return await self.submit(login, request)

    async def cancel(self, login: str, ticket: str) -> Placed | Rejected:
        return await self.submit(login, Request(kind="cancel", ticket=ticket))

    # --- records and faults --------------------------------------------------------------------------

    async def journal(self, login: str, *, after: int = 0) -> tuple[JournalEntry, ...]:
        """The journal of a book in order; only entries with a number above `after`."""
        found: tuple[JournalEntry, ...] = decode(
            tuple[JournalEntry, ...], await self._connection.call("journal", login=login, after=after)
        )
        return found

    async def requests(self, login: str) -> tuple[RequestRecord, ...]:
        """Every order request that a book received, including those of humans, in order."""
        found: tuple[RequestRecord, ...] = decode(
            tuple[RequestRecord, ...], await self._connection.call("requests", login=login)
        )
        return found

    async def requests_by_tag(self, login: str) -> dict[int, tuple[RequestRecord, ...]]:
        """Requests of connected programs by execution number; for each number at most one may have been *executed*."""
        by_tag: dict[int, tuple[RequestRecord, ...]] = {}
        for record in await self.requests(login):
            if record.tag is not None:
                by_tag[record.tag] = (*by_tag.get(record.tag, ()), record)
        return by_tag

    async def fault(
        self,
        login: str,
        kind: OrderFault,
        *,
        next_orders: int = 1,
        only: Iterable[RequestKind] = (),
        share: Decimal = HALF,
    ) -> None:
        """Inject a fault into the next order requests of connected programs (only of these kinds, if given).

        timeout_executed: executed, but not answered · timeout_lost: neither · hang: the session stops answering ·
        partial: only `share` of the volume is filled · bare: executed, but the answer names no position · the others:
        refused with that reason (reject: without one).
        """
        await self._connection.call(
            "fault", login=login, kind=kind, next_orders=next_orders, only=tuple(only), share=share
        )

    async def fault_snapshot(self, login: str, kind: SnapshotFault, *, times: int = 1) -> None:
        """Inject a fault into the next reads of positions and orders (a pair counts once).

        none and error = unreadable, empty = "holds nothing", stale = the state at the time of this call."""
        await self._connection.call("fault_snapshot", login=login, kind=kind, times=times)

    async def clear_faults(self, login: str) -> None:
        await self._connection.call("clear_faults", login=login)

    async def disconnect(self, login: str) -> int:
        """Disconnect every program from a book; returns their number."""
        found: int = decode(int, await self._connection.call("disconnect", login=login))
        return found

    async def sessions(self, login: str) -> int:
        """The number of programs that are connected to a book."""
        found: int = decode(int, await self._connection.call("sessions", login=login))
        return found

    async def wait_for(
        self,
        login: str,
        *,
        positions: int | None = None,
        orders: int | None = None,
        timeout: float = 5.0,  # noqa: ASYNC109
    ) -> BookView:
        """Wait until a book holds this many positions and pending orders; TimeoutError otherwise. Does not poll."""
        async with asyncio.timeout(timeout):
            reply = await self._connection.call("wait_for", login=login, positions=positions, orders=orders)
        found: BookView = decode(BookView, reply)
        return found

    async def wait_for_request(self, login: str, tag: int, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Wait until an order request with this tag has arrived, executed or not."""
        async with asyncio.timeout(timeout):
            await self._connection.call("wait_for_request", login=login, tag=tag)


def ticket_of(result: Placed | Rejected) -> str:
    """The ticket that an order left open; ValueError if it was refused or left nothing open."""
    left: list[Position] = [] if isinstance(result, Rejected) else [p for p in result.positions if p.lots]
    if not left:
        raise ValueError(f"nothing was left open: {result}")
    return left[-1].ticket
