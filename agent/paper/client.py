"""`PaperClient`: the operator's and the account holder's side of the paper broker.

    async with await PaperClient.connect(process.address, process.token) as paper:
        await paper.open_book("1001", balance=Decimal(10000))
        await paper.set_prices({"EURUSD": (Decimal("1.10000"), Decimal("1.10010"))})
        placed = await paper.market("1001", "EURUSD", "buy", Decimal("0.10"))

Every order method trades as that account's human (`reason` client) and meets neither latency nor faults.
Its result is a value: `Placed`, or `Rejected` with a reason of docs/errors.md. A lost connection raises `PaperLost`,
a request that makes no sense `PaperRefused` (unknown login, malformed figures).
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
        """`address` is host:port."""
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
        """Open an account. `symbols` None: the default instruments; else exactly these. A second book of a login is refused."""
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

    async def books(self) -> tuple[str, ...]:
        """Logins of all books."""
        found: tuple[str, ...] = decode(tuple[str, ...], await self._connection.call("books"))
        return found

    async def book(self, login: str) -> BookView:
        found: BookView = decode(BookView, await self._connection.call("book", login=login))
        return found

    async def put_symbols(self, login: str, symbols: Iterable[SymbolSpec]) -> None:
        """Add instruments to a book, or change theirs (say, `trade_mode`)."""
        await self._connection.call("put_symbols", login=login, symbols=tuple(symbols))

    async def deposit(self, login: str, amount: Decimal) -> None:
        """Book a deposit (negative: withdrawal) in the account's currency."""
        await self._connection.call("deposit", login=login, amount=amount)

    async def set_prices(self, prices: Prices, *, login: str | None = None) -> None:
        """(bid, ask) per symbol, for everybody or for one book only; triggers follow before this returns.

        A symbol without prices of its own takes those of its plain name (EURUSD.m those of EURUSD).
        """
        await self._connection.call("set_prices", login=login, prices={name: [str(b), str(a)] for name, (b, a) in prices.items()})

    async def quote(self, login: str, symbol: str) -> Quote | None:
        found: Quote | None = decode(Quote | None, await self._connection.call("quote", login=login, symbol=symbol))
        return found

    async def start_feed(
        self, *, symbols: Iterable[str] | None = None, seed: int = 1, interval: timedelta = timedelta(milliseconds=250)
    ) -> None:
        """Start a seeded random walk over `symbols` (None: the default instruments) from their present prices."""
        names = None if symbols is None else tuple(symbols)
        await self._connection.call("start_feed", symbols=names, seed=seed, interval_s=interval.total_seconds())

    async def stop_feed(self) -> None:
        await self._connection.call("stop_feed")

    async def now(self) -> datetime:
        found: datetime = decode(datetime, await self._connection.call("now"))
        return found

    async def advance(self, by: timedelta) -> datetime:
        """Move a virtual clock on (latencies end, orders expire); refused when the broker runs on the real clock."""
        found: datetime = decode(datetime, await self._connection.call("advance", seconds=by.total_seconds()))
        return found

    # --- trading as the account's human --------------------------------------------------------------

    async def submit(self, login: str, request: Request) -> Placed | Rejected:
        """Any request as it is; the methods below are its short forms."""
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
        """Take `lots` off a position; None: all of it."""
        return await self.submit(login, Request(kind="close", ticket=ticket, lots=lots))

    async def close_symbol(self, login: str, symbol: str) -> tuple[Placed | Rejected, ...]:
        """Close every position in `symbol`."""
        held = [position for position in (await self.book(login)).positions if position.symbol == symbol]
        return tuple([await self.close_position(login, position.ticket) for position in held])

    async def close_by(self, login: str, ticket: str, other_ticket: str) -> Placed | Rejected:
        """Close two opposite positions of one symbol against each other; what one is larger by stays open."""
        return await self.submit(login, Request(kind="close_by", ticket=ticket, other_ticket=other_ticket))

    async def modify(self, login: str, ticket: str, *, sl: Decimal | None, tp: Decimal | None) -> Placed | Rejected:
        """Set both levels of a position; None removes."""
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
        """Set price, both levels and expiry of a pending order; None removes."""
        request = Request(kind="amend", ticket=ticket, price=price, sl=sl, tp=tp, expires_at=expires_at)
        return await self.submit(login, request)

    async def cancel(self, login: str, ticket: str) -> Placed | Rejected:
        return await self.submit(login, Request(kind="cancel", ticket=ticket))

    # --- records and faults --------------------------------------------------------------------------

    async def journal(self, login: str, *, after: int = 0) -> tuple[JournalEntry, ...]:
        """Everything that happened to a book, in order; only entries with a number above `after`."""
        found: tuple[JournalEntry, ...] = decode(
            tuple[JournalEntry, ...], await self._connection.call("journal", login=login, after=after)
        )
        return found

    async def requests(self, login: str) -> tuple[RequestRecord, ...]:
        """Every order request that arrived for a book, humans' included, in order."""
        found: tuple[RequestRecord, ...] = decode(tuple[RequestRecord, ...], await self._connection.call("requests", login=login))
        return found

    async def requests_by_tag(self, login: str) -> dict[int, tuple[RequestRecord, ...]]:
        """Requests of connected programs by execution number: none may have been *executed* twice."""
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
        """Let the next order requests of connected programs (only of these kinds, when named) go wrong.

        timeout_executed: carried out, but no answer · timeout_lost: neither · hang: the session answers nothing any more ·
        partial: `share` of the volume is filled · bare: carried out, but the answer names no position · the others: refused
        with that reason (reject: with none).
        """
        await self._connection.call("fault", login=login, kind=kind, next_orders=next_orders, only=tuple(only), share=share)

    async def fault_snapshot(self, login: str, kind: SnapshotFault, *, times: int = 1) -> None:
        """Let the next reads of positions and orders (one pair counts once) fail: none and error = unreadable,
        empty = "holds nothing", stale = the state of this moment."""
        await self._connection.call("fault_snapshot", login=login, kind=kind, times=times)

    async def clear_faults(self, login: str) -> None:
        await self._connection.call("clear_faults", login=login)

    async def disconnect(self, login: str) -> int:
        """Cut every connected program off a book; returns how many."""
        found: int = decode(int, await self._connection.call("disconnect", login=login))
        return found

    async def sessions(self, login: str) -> int:
        """How many programs are connected to a book now."""
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
        """Wait until a book holds so many positions and pending orders; TimeoutError otherwise. Woken, not polling."""
        async with asyncio.timeout(timeout):
            reply = await self._connection.call("wait_for", login=login, positions=positions, orders=orders)
        found: BookView = decode(BookView, reply)
        return found

    async def wait_for_request(self, login: str, tag: int, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Wait until an order request with this tag has arrived, executed or not."""
        async with asyncio.timeout(timeout):
            await self._connection.call("wait_for_request", login=login, tag=tag)


def ticket_of(result: Placed | Rejected) -> str:
    """Ticket that an order left open; ValueError if it was refused or left nothing."""
    left: list[Position] = [] if isinstance(result, Rejected) else [p for p in result.positions if p.lots]
    if not left:
        raise ValueError(f"nothing was left open: {result}")
    return left[-1].ticket
