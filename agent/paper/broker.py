"""The paper broker: many books, one market, one clock. Synchronous and deterministic; the server adds the waiting.

An order request takes two steps: `receive` records it and draws its random outcome, `execute` carries it out after the
latency that was drawn. `on_changes` is called for every change at the moment it happens.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, assert_never

from agent.model import AccountState, Mode, Quote, SymbolSpec
from agent.paper.book import Book
from agent.paper.clocks import Clock
from agent.paper.desk import Desk
from agent.paper.faults import BadRead, Faults
from agent.paper.margin import state
from agent.paper.market import Market
from agent.paper.matching import Conditions, Matching
from agent.paper.passwords import Hashed, Right, hashed, matches
from agent.paper.profile import Mood, Profile
from agent.paper.records import (
    Answer,
    BookChange,
    BookView,
    Holdings,
    OrderFault,
    Request,
    RequestKind,
    RequestRecord,
    SnapshotFault,
    Traces,
)
from agent.paper.refusals import Refusal
from agent.paper.specs import default_specs
from agent.paper.triggers import Triggers

SERVER = "paper"
_FIRST_TICKET = 5001
HALF = Decimal("0.5")


class BrokerError(Exception):
    """An operator's call is invalid; `code` is one word, the text says what is wrong and why."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Received:
    """A recorded request and its drawn outcome."""

    login: str
    number: int
    request: Request
    mood: Mood
    fault: OrderFault | None
    #: the share of the volume that an injected partial fill executes
    share: Decimal
    quote: Quote | None
    too_many: bool

    @property
    def latency_s(self) -> float:
        return self.mood.latency_s


_CALM = Mood(latency_s=0, slippage_points=0, reject=False, requote=False, fill_share=Decimal(1))


class Broker:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.market = Market()
        self.books: dict[str, Book] = {}
        self._faults: dict[str, Faults] = {}
        self._recent: dict[str, deque[datetime]] = {}
        self.numbers = itertools.count(_FIRST_TICKET)
        self.on_changes: Callable[[str, tuple[BookChange, ...]], None] = lambda _login, _changes: None
        self.on_book: Callable[[Book], None] = lambda _book: None
        self.on_prices: Callable[[str | None, Iterable[Quote]], None] = lambda _login, _quotes: None

    # --- books -------------------------------------------------------------------------------------

    def open_book(
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
        # logins that differ only in upper and lower case are the same to people, and to the database
        if not login or login in self.books or login.casefold() in map(str.casefold, self.books):
            raise BrokerError("login_taken", f"an account {login!r} exists already" if login else "a login is required")
        if leverage < 1 or not balance.is_finite() or balance < 0:
            raise BrokerError("malformed", "leverage must be at least 1 and the balance must not be negative")
        specs = default_specs() if symbols is None else symbols
        book = Book(
            login, currency=currency, leverage=leverage, mode=mode, symbols={spec.name: spec for spec in specs},
            profile=profile or Profile(),
        )  # fmt: skip
        self.adopt(book)
        book.note(self.clock.now(), "book_opened", currency=currency, balance=balance, leverage=leverage, mode=mode)
        book.book_deal(self.clock.now(), "balance", "balance", profit=balance, comment="deposit")
        return state(book, self.market, SERVER)

    def adopt(self, book: Book) -> None:
        """Take over a book as it is (a new one, or one loaded from disk)."""
        self.books[book.login] = book
        self._faults[book.login] = Faults()
        self._recent[book.login] = deque()
        self.on_book(book)

    async def admit(self, login: str, password: str) -> Right:
        """The rights that this password grants on an account. An account's first login sets its trading password."""
        book = self.book(login)
        if await matches(password, book.investor_password):
            return "investor"
        if book.password is None:
            first = await hashed(password)
            # another login may have set it in the meantime
            if book.password is None:
                self.set_passwords(login, first, book.investor_password)
                return "trading"
        if not await matches(password, book.password):
            raise BrokerError("wrong_password", f"the password of account {login!r} is wrong")
        return "trading"

    def set_passwords(self, login: str, password: Hashed | None, investor_password: Hashed | None) -> None:
        book = self.book(login)
        book.password, book.investor_password = password, investor_password
        book.note(
            self.clock.now(), "passwords_set", password=password is not None, investor=investor_password is not None
        )
        self.on_book(book)

    def skip_tickets(self, used: int) -> None:
        """Never assign a ticket number up to `used` again."""
        self.numbers = itertools.count(max(used + 1, _FIRST_TICKET))

    def book(self, login: str) -> Book:
        found = self.books.get(login)
        if found is None:
            raise BrokerError("unknown_login", f"there is no account {login!r} at this paper broker")
        return found

    def state(self, login: str) -> AccountState:
        return state(self.book(login), self.market, SERVER)

    def view(self, login: str) -> BookView:
        book = self.book(login)
        return BookView(
            login=login, state=self.state(login), positions=tuple(book.positions.values()),
            orders=tuple(book.orders.values()), deals=tuple(book.deals), symbols=tuple(book.symbols.values()),
        )  # fmt: skip

    def holdings(self, login: str) -> Holdings:
        book = self.book(login)
        return Holdings(login=login, positions=tuple(book.positions.values()), orders=tuple(book.orders.values()))

    def put_symbols(self, login: str, symbols: Iterable[SymbolSpec]) -> None:
        book = self.book(login)
        for spec in symbols:
            book.symbols[spec.name] = spec
            book.note(self.clock.now(), "symbol_set", symbol=spec)
        self.on_book(book)

    def rename(self, login: str, old: str, new: str) -> None:
        """The broker gives a symbol another name: its quote, positions and orders follow."""
        book = self.book(login)
        if old not in book.symbols or new in book.symbols:
            raise BrokerError("malformed", f"{login} has no symbol {old!r}, or has a symbol {new!r} already")
        quote = self.market.quote(login, old)
        book.symbols = {new if name == old else name: spec for name, spec in book.symbols.items()}
        book.symbols[new] = replace(book.symbols[new], name=new)
        if quote is not None and self.market.quote(login, new) is None:  # a suffixed name has the plain one's quote
            self.market.set({new: (quote.bid, quote.ask)}, quote.at, login)
        for held in (*book.positions.values(), *book.orders.values()):
            if held.symbol == old:
                book.put(replace(held, symbol=new))
        book.note(self.clock.now(), "symbol_renamed", old=old, new=new)
        self.on_book(book)
        self._publish(book)

    def deposit(self, login: str, amount: Decimal) -> None:
        book = self.book(login)
        book.book_deal(
            self.clock.now(), "balance", "balance", profit=amount, comment="deposit" if amount >= 0 else "withdrawal"
        )
        self._triggers(book).stop_out()
        self._publish(book)

    def traces(self, login: str, tag: int) -> Traces:
        book = self.book(login)
        records = tuple(book.history_by_tag.get(tag, ()))
        keys = dict.fromkeys(key for record in records for key in record.named())
        held = (book.held(ticket, kind) for kind, ticket in keys)
        return Traces(
            records=records,
            positions=tuple(position for position in held if position is not None),
            in_flight=book.open_tags[tag] > 0,
        )

    # --- prices and time ---------------------------------------------------------------------------

    def set_prices(self, prices: Mapping[str, tuple[Decimal, Decimal]], login: str | None = None) -> None:
        """Set quotes and execute everything that they trigger. A price of 0 or below needs a book whose symbol allows
        it."""
        books = list(self.books.values()) if login is None else [self.book(login)]
        low = {symbol for symbol, (bid, _) in prices.items() if bid.is_finite() and bid <= 0}
        allowed = {symbol for symbol in low for book in books if _allows_negative(book, symbol)}
        try:
            if low - allowed:
                raise ValueError(f"{min(low - allowed)}: the bid must be above 0")
            self.market.set(prices, self.clock.now(), login)
        except ValueError as error:
            raise BrokerError("malformed", str(error)) from None
        now = self.clock.now()
        self.on_prices(login, [Quote(symbol, bid, ask, now) for symbol, (bid, ask) in prices.items()])
        for book in books:
            if book.positions or book.orders:
                self._triggers(book).run()
                self._publish(book)

    def pass_time(self) -> None:
        """Expire every order that is due now."""
        for book in self.books.values():
            if book.orders:
                self._triggers(book).expire()
                self._publish(book)

    def next_expiry(self) -> datetime | None:
        expiries = (order.expires_at for book in self.books.values() for order in book.orders.values())
        return min((expiry for expiry in expiries if expiry is not None), default=None)

    # --- orders ------------------------------------------------------------------------------------

    def receive(self, login: str, request: Request) -> Received:
        """Record a request and draw its outcome; chance and injected faults affect connected programs only."""
        book = self.book(login)
        program = request.origin == "expert"
        now = self.clock.now()
        number = len(book.requests) + 1
        book.request(
            RequestRecord(
                number=number, at=now, kind=request.kind, origin=request.origin, symbol=request.symbol,
                side=request.side, lots=request.lots, tag=request.tag, outcome="open",
            )
        )  # fmt: skip
        book.note(now, "order_received", number=number, request=request)
        fault, share = (self._faults[login].take(request.kind) if program else None) or (None, Decimal(1))
        return Received(
            login=login, number=number, request=request,
            mood=book.moods.draw() if program else _CALM,
            fault=fault,
            share=share,
            quote=self.market.quote(login, request.symbol) if request.symbol else None,
            too_many=program and self._too_many(book, now),
        )  # fmt: skip

    def execute(self, received: Received) -> Answer:
        """Execute a received request. `timeout`: the sender must not learn the result."""
        book, fault = self.book(received.login), received.fault
        if fault in ("timeout_lost", "hang"):
            return self._decide(book, received, Answer(status="timeout", message="no answer"), "lost")
        try:
            self._strike(received)
            answer = Matching(self._desk(book)).execute(received.request, self._conditions(received))
        except Refusal as refusal:
            answer = Answer(status="refused", reason=refusal.reason, message=str(refusal))
            return self._decide(book, received, answer, "refused")
        self._triggers(book).stop_out()
        self._decide(book, received, answer, "executed")
        self._publish(book)
        if fault == "timeout_executed":
            return Answer(status="timeout", message="no answer")
        return replace(answer, positions=()) if fault == "bare" else answer

    def submit(self, login: str, request: Request) -> Answer:
        """Receive and execute at once, without latency."""
        return self.execute(self.receive(login, request))

    def _strike(self, received: Received) -> None:
        """Raise the error that chance or an injected fault has chosen instead of an execution."""
        match received.fault:
            case "reject":
                raise Refusal("rejected")
            case (
                "requote"
                | "price_changed"
                | "no_money"
                | "market_closed"
                | "too_many_requests"
                | "autotrading_off"
                | "investor_password"
            ) as reason:
                raise Refusal(reason)
            case None | "partial" | "timeout_executed" | "timeout_lost" | "hang" | "bare":
                pass
            case _:
                assert_never(received.fault)
        if received.too_many:
            raise Refusal("too_many_requests")
        if received.mood.reject:
            raise Refusal("rejected")
        if received.mood.requote and received.request.kind in ("market", "close"):
            raise Refusal("requote")

    def _conditions(self, received: Received) -> Conditions:
        share = received.share if received.fault == "partial" else received.mood.fill_share
        slippage = received.mood.slippage_points
        return Conditions(slippage_points=slippage, fill_share=share, quote=received.quote)

    def _decide(
        self, book: Book, received: Received, answer: Answer, outcome: Literal["executed", "refused", "lost"]
    ) -> Answer:
        record = book.requests[received.number - 1]
        book.request(replace(record, outcome=outcome, reason=answer.reason))
        fields = {"number": received.number, "reason": answer.reason, "fault": received.fault}
        book.note(self.clock.now(), f"order_{outcome}", **fields)
        return answer

    def _too_many(self, book: Book, now: datetime) -> bool:
        most = book.profile.orders_per_second_max
        if not most:
            return False
        recent = self._recent[book.login]
        while recent and recent[0] <= now - timedelta(seconds=1):
            recent.popleft()
        if len(recent) >= most:
            return True
        recent.append(now)
        return False

    # --- faults ------------------------------------------------------------------------------------

    def fault(
        self,
        login: str,
        kind: OrderFault,
        next_orders: int = 1,
        only: Iterable[RequestKind] = (),
        share: Decimal = HALF,
    ) -> None:
        book = self.book(login)
        if not 0 < share < 1:
            raise BrokerError("malformed", "the share of a partial fill must be between 0 and 1")
        self._faults[login].plant(kind, next_orders, only, share)
        book.note(self.clock.now(), "fault_planted", kind=kind, next_orders=next_orders)

    def fault_snapshot(self, login: str, kind: SnapshotFault, times: int = 1) -> None:
        book = self.book(login)
        match kind:
            case "none" | "error":
                bad = BadRead(kind)
            case "empty":
                bad = BadRead(kind, (), ())
            case "stale":
                bad = BadRead(kind, tuple(book.positions.values()), tuple(book.orders.values()))
            case _:
                assert_never(kind)
        self._faults[login].plant_read(bad, times)
        book.note(self.clock.now(), "fault_planted", kind=kind, times=times)

    def take_bad_read(self, login: str) -> BadRead | None:
        return self._faults[login].take_read()

    def clear_faults(self, login: str) -> None:
        self.book(login)
        self._faults[login].clear()

    # --- internal ----------------------------------------------------------------------------------

    def _desk(self, book: Book) -> Desk:
        return Desk(book, self.market, self.clock.now(), self.numbers)

    def _triggers(self, book: Book) -> Triggers:
        return Triggers(self._desk(book))

    def _publish(self, book: Book) -> None:
        changes = book.take_changes()
        if changes:
            self.on_changes(book.login, changes)


def _allows_negative(book: Book, symbol: str) -> bool:
    spec = book.symbols.get(symbol)
    return spec is not None and spec.allow_negative
