"""One connection to the paper broker: authentication, permitted operations, and pushes."""

import asyncio
import hmac
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sized
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Protocol

from agent.model import AccountState, Mode, Position, SymbolSpec
from agent.paper.broker import HALF, Broker, BrokerError
from agent.paper.clocks import VirtualClock
from agent.paper.faults import BadRead
from agent.paper.messages import MalformedMessage, decode, encode, parse
from agent.paper.passwords import Right, hashed
from agent.paper.profile import Profile
from agent.paper.records import Answer, BookChange, OrderFault, Request, RequestKind, SnapshotFault
from agent.paper.refusals import Refusal

#: a session with this many unread bytes is disconnected
_BACKLOG_MAX = 32 * 1024 * 1024
_ADVANCE_MAX_S = 10 * 366 * 86400
logger = logging.getLogger(__name__)
Handler = Callable[[dict[str, Any]], object]
Later = Awaitable[object]


class Host(Protocol):
    """What a session needs from its server."""

    broker: Broker
    token: str

    def join(self, session: "Session") -> None: ...
    def leave(self, session: "Session") -> None: ...
    def sessions_of(self, login: str) -> Sized: ...
    def disconnect(self, login: str) -> int: ...
    def wake(self, login: str) -> None: ...
    def settle(self) -> None: ...
    def start_feed(self, symbols: Iterable[str] | None, seed: int, interval_s: float) -> None: ...
    def stop_feed(self) -> None: ...
    async def changed(self, login: str) -> None: ...


class Session:
    """An operator (`hello`) or a program connected to one book (`login`)."""

    def __init__(self, server: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._broker = server.broker
        self._reader = reader
        self._writer = writer
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: dict[str, Handler] = {"hello": self._hello, "login": self._login}
        #: the book of a program; None: an operator, or not authenticated yet
        self.login: str | None = None
        self._right: Right = "trading"
        self._operates = False
        self._hung = False
        #: what the positions of the current snapshot show
        self._bad_read: BadRead | None = None
        raw = writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def run(self) -> None:
        """Serve until the peer disconnects. Orders already received are executed in any case."""
        try:
            while line := await self._reader.readline():
                if not self._hung:
                    self._receive(line)
                    if self.login is None and self._tasks and not self._operates:
                        # messages after a login wait until it was accepted
                        await asyncio.wait(self._tasks)
        except (OSError, ValueError):
            # a line over the limit, or a reset: the peer cannot be reached in either case
            pass
        finally:
            self._server.leave(self)
            self.cut()

    def cut(self) -> None:
        self._writer.transport.abort()

    def push(self, changes: tuple[BookChange, ...]) -> None:
        if not self._hung:
            self._send({"push": "changes", "changes": changes})

    def _send(self, message: object) -> None:
        if self._writer.transport.is_closing():
            return
        self._writer.write(encode(message))
        if self._writer.transport.get_write_buffer_size() > _BACKLOG_MAX:
            self.cut()

    def _receive(self, line: bytes) -> None:
        number: object = None
        try:
            message = parse(line)
            number = message.get("id")
            handler = self._handlers.get(str(message.get("op")))
            if handler is None:
                raise MalformedMessage(f"unknown operation {message.get('op')!r}")
            reply = handler(message)
        except Exception as error:
            self._refuse(number, error)
            return
        if isinstance(reply, Awaitable):
            task = asyncio.ensure_future(self._reply_later(number, reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._answer(number, reply)

    async def _reply_later(self, number: object, later: Later) -> None:
        try:
            reply = await later
        except Exception as error:
            self._refuse(number, error)
        else:
            self._answer(number, reply)

    def _answer(self, number: object, reply: object) -> None:
        """Store changes before answering: a crash must not undo anything that was reported."""
        self._server.settle()
        if reply is not NO_REPLY:
            self._send({"id": number, "ok": reply})

    def _refuse(self, number: object, error: Exception) -> None:
        """Report an error. A bug must not end the session, and must never look like a definite refusal."""
        match error:
            case BrokerError():
                code = error.code
            case MalformedMessage():
                code = "malformed"
            case _:
                code = "internal"
                logger.error("request_failed", exc_info=error)
        self._send({"id": number, "error": {"code": code, "message": str(error) or type(error).__name__}})

    # --- authentication -------------------------------------------------------------------------------

    def _check_token(self, message: dict[str, Any]) -> None:
        if not hmac.compare_digest(str(message.get("token", "")).encode(), self._server.token.encode()):
            raise BrokerError("unauthorised", "the token does not belong to this paper broker")

    def _hello(self, message: dict[str, Any]) -> object:
        self._check_token(message)
        self._operates = True
        self._handlers = self._operator_handlers()
        return {"server": "paper"}

    def _login(self, message: dict[str, Any]) -> object:
        """A program logs in with its account's password; the broker's token would make it an operator of all
        accounts."""
        login, password = _text(message, "login"), _text(message, "password")
        opening = message.get("open")
        if login not in self._broker.books and opening is not None:
            self._open(login, opening)

        async def admitted() -> object:
            self._right = await self._broker.admit(login, password)
            if not self._writer.transport.is_closing():
                self.login = login
                self._handlers = self._program_handlers()
                self._server.join(self)
            return self._state(login)

        return admitted()

    def _state(self, login: str) -> AccountState:
        return replace(self._broker.state(login), trade_allowed=self._right == "trading")

    def _open(self, login: str, opening: dict[str, Any]) -> object:
        symbols: tuple[SymbolSpec, ...] | None = decode(tuple[SymbolSpec, ...] | None, opening.get("symbols"))
        return self._broker.open_book(
            login,
            currency=str(opening.get("currency", "USD")),
            balance=decode(Decimal, opening.get("balance", "10000")),
            leverage=decode(int, opening.get("leverage", 100)),
            mode=decode(Mode, opening.get("mode", "hedging")),
            symbols=symbols,
            profile=decode(Profile | None, opening.get("profile")),
        )

    # --- programs ----------------------------------------------------------------------------------

    def _program_handlers(self) -> dict[str, Handler]:
        login, broker = self.login or "", self._broker
        return {
            "ping": lambda _: None,
            "account": lambda _: self._state(login),
            "profile": lambda _: broker.book(login).profile,
            "symbol": lambda m: broker.book(login).symbols.get(_text(m, "symbol")),
            "symbols": lambda _: tuple(broker.book(login).symbols),
            "quote": lambda m: broker.market.shown(login, _text(m, "symbol")),
            "orders": lambda _: self._read_orders(),
            "positions": lambda _: self._read_positions(),
            "find": lambda m: broker.traces(login, decode(int, m.get("tag"))),
            "order": lambda m: self._order(login, m, "expert"),
        }

    def _read_orders(self) -> tuple[Position, ...]:
        """The first half of a snapshot; an injected fault covers both halves and counts once."""
        self._bad_read = bad = self._broker.take_bad_read(self.login or "")
        if bad is None:
            return tuple(self._broker.book(self.login or "").orders.values())
        if bad.orders is None:
            self._bad_read = None
            raise BrokerError("unreadable", f"the terminal returned no data ({bad.kind})")
        return bad.orders

    def _read_positions(self) -> tuple[Position, ...]:
        bad, self._bad_read = self._bad_read or self._broker.take_bad_read(self.login or ""), None
        if bad is None:
            return tuple(self._broker.book(self.login or "").positions.values())
        if bad.positions is None:
            raise BrokerError("unreadable", f"the terminal returned no data ({bad.kind})")
        return bad.positions

    def _order(self, login: str, message: dict[str, Any], origin: str) -> object:
        request: Request = decode(Request, {**_mapping(message, "request"), "origin": origin})
        if self._right == "investor":
            refusal = Refusal("investor_password")
            return Answer(status="refused", reason=refusal.reason, message=str(refusal))
        received = self._broker.receive(login, request)
        self._server.wake(login)
        if received.fault == "hang":
            self._broker.execute(received)
            self._hung = True
            return NO_REPLY
        if received.latency_s <= 0:
            return self._broker.execute(received)

        async def after_latency() -> object:
            await self._broker.clock.sleep(received.latency_s)
            return self._broker.execute(received)

        return after_latency()

    # --- operators ---------------------------------------------------------------------------------

    def _operator_handlers(self) -> dict[str, Handler]:
        broker, server = self._broker, self._server
        return {
            "open_book": lambda m: self._open(_text(m, "login"), m),
            "set_passwords": self._set_passwords,
            "books": lambda _: tuple(broker.books),
            "book": lambda m: broker.view(_text(m, "login")),
            "holdings": lambda m: broker.holdings(_text(m, "login")),
            "put_symbols": lambda m: broker.put_symbols(
                _text(m, "login"), decode(tuple[SymbolSpec, ...], m.get("symbols"))
            ),
            "rename": lambda m: broker.rename(_text(m, "login"), _text(m, "old"), _text(m, "new")),
            "deposit": lambda m: broker.deposit(_text(m, "login"), decode(Decimal, m.get("amount"))),
            "set_prices": lambda m: broker.set_prices(
                decode(dict[str, tuple[Decimal, Decimal]], m.get("prices")), decode(str | None, m.get("login"))
            ),
            "withhold_quotes": lambda m: broker.market.withhold(_text(m, "login")),
            "quote": lambda m: broker.market.quote(broker.book(_text(m, "login")).login, _text(m, "symbol")),
            "start_feed": lambda m: server.start_feed(
                decode(tuple[str, ...] | None, m.get("symbols")),
                decode(int, m.get("seed")),
                decode(float, m.get("interval_s")),
            ),
            "stop_feed": lambda _: server.stop_feed(),
            "now": lambda _: broker.clock.now(),
            "advance": self._advance,
            "order": lambda m: self._order(_text(m, "login"), m, "client"),
            "journal": lambda m: broker.book(_text(m, "login")).journal[decode(int, m.get("after", 0)) :],
            "requests": lambda m: broker.book(_text(m, "login")).requests,
            "fault": lambda m: broker.fault(
                _text(m, "login"),
                decode(OrderFault, m.get("kind")),
                decode(int, m.get("next_orders", 1)),
                decode(tuple[RequestKind, ...], m.get("only", ())),
                decode(Decimal, m.get("share", HALF)),
            ),
            "fault_snapshot": lambda m: broker.fault_snapshot(
                _text(m, "login"), decode(SnapshotFault, m.get("kind")), decode(int, m.get("times", 1))
            ),
            "clear_faults": lambda m: broker.clear_faults(_text(m, "login")),
            "disconnect": lambda m: server.disconnect(broker.book(_text(m, "login")).login),
            "sessions": lambda m: len(server.sessions_of(broker.book(_text(m, "login")).login)),
            "wait_for_request": lambda m: self._wait_for_request(_text(m, "login"), decode(int, m.get("tag"))),
            "wait_for": lambda m: self._wait_for(
                _text(m, "login"), decode(int | None, m.get("positions")), decode(int | None, m.get("orders"))
            ),
        }

    async def _set_passwords(self, message: dict[str, Any]) -> None:
        login = _text(message, "login")
        trading: str | None = decode(str | None, message.get("password"))
        investor: str | None = decode(str | None, message.get("investor_password"))
        made = [await hashed(password) if password else None for password in (trading, investor)]
        self._broker.set_passwords(login, made[0], made[1])

    def _advance(self, message: dict[str, Any]) -> object:
        clock = self._broker.clock
        if not isinstance(clock, VirtualClock):
            raise BrokerError("real_clock", "this paper broker runs on the real clock, which cannot be moved")
        seconds: float = decode(float, message.get("seconds"))
        if not 0 <= seconds < _ADVANCE_MAX_S:
            raise MalformedMessage(f"seconds: {seconds} is not between 0 and {_ADVANCE_MAX_S}")
        now = clock.advance(timedelta(seconds=seconds))
        self._broker.pass_time()

        async def once_woken() -> object:
            # waiting tasks that became due run before the answer is sent
            await asyncio.sleep(0)
            return now

        return once_woken()

    async def _wait_for(self, login: str, positions: int | None, orders: int | None) -> object:
        book = self._broker.book(login)
        while positions not in (None, len(book.positions)) or orders not in (None, len(book.orders)):
            await self._server.changed(login)
        return self._broker.view(login)

    async def _wait_for_request(self, login: str, tag: int) -> None:
        while not any(record.tag == tag for record in self._broker.book(login).requests):
            await self._server.changed(login)


NO_REPLY = object()


def _text(message: dict[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedMessage(f"{name}: a string is required")
    return value


def _mapping(message: dict[str, Any], name: str) -> dict[str, Any]:
    value = message.get(name)
    if not isinstance(value, dict):
        raise MalformedMessage(f"{name}: an object is required")
    return value
