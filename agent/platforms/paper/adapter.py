"""`PaperAdapter`: one connection to one account at the built-in paper broker.

`Login.address` is the broker's host:port; the settings cannot change it, and error messages name neither the address
nor what answered there. The settings may be `{"paper": {"balance": "10000", "leverage": 100, "order_timeout_s": 3,
"read_timeout_s": 3, "ping_s": 1, "orders_per_second": 20}}`. With a `balance` an account that does not exist yet is
opened.

The tag of an order is the broker's own `tag` field, so an order that matches in tag, symbol, side and lots is ours.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from agent.clock import boot_time
from agent.model import (
    AccountState,
    Change,
    Changed,
    ExecutionId,
    Found,
    Login,
    NotFound,
    Order,
    Placed,
    Position,
    Quote,
    Rejected,
    Result,
    SymbolSpec,
    Unknown,
)
from agent.paper.connection import Connection, PaperLost, PaperRefused
from agent.paper.messages import MalformedMessage, decode
from agent.paper.profile import Profile
from agent.paper.records import Answer, BookChange, OrderRecord, Request, Traces
from agent.paper.refusals import rejected
from agent.platforms.adapter import AdapterError, Capabilities, LoginRefused, NotReached
from agent.platforms.rate_limit import RateLimit

log = logging.getLogger(__name__)

_SETTLE = timedelta(seconds=1)
#: seconds between two pings (`ping_s`); the age of a change is known with this precision
_PING_S = 1.0
_TIMEOUT_S = 3.0
_CAPABILITIES = Capabilities(
    netting=True,
    hedging=True,
    pending_orders=True,
    close_by=True,
    retickets=False,
    protected_market_orders=True,
    settle=_SETTLE,
)


@dataclass(slots=True)
class _Line:
    """One connection and its state."""

    connection: Connection
    take_seq: Callable[[], int]
    server: str
    order_timeout_s: float
    read_timeout_s: float
    ping_s: float
    connected_at: float
    #: all changes up to this time have been received
    seen_at: datetime
    changes: "asyncio.Queue[Changed | PaperLost | None]"
    bucket: RateLimit | None = None
    ping: "asyncio.Task[None] | None" = None
    profile: Profile = field(default_factory=Profile)


class PaperAdapter:
    def __init__(self) -> None:
        self._line: _Line | None = None
        #: boot time at which each order was last sent: its absence is conclusive only after the settle time
        self._sent_at: dict[ExecutionId, float] = {}

    def capabilities(self) -> Capabilities:
        """Those of the account's broker; before the first connection those of the default profile."""
        profile = Profile() if self._line is None else self._line.profile
        return replace(_CAPABILITIES, protected_market_orders=profile.levels_on_open, timed_orders=profile.timed_orders)

    def bucket(self) -> RateLimit | None:
        return None if self._line is None else self._line.bucket

    # --- connection --------------------------------------------------------------------------------

    async def connect(self, login: Login, take_seq: Callable[[], int]) -> AccountState:
        await self.close()
        settings = _paper_settings(login)
        read_timeout_s = _seconds(settings, "read_timeout_s", _TIMEOUT_S)
        order_timeout_s = _seconds(settings, "order_timeout_s", _TIMEOUT_S)
        ping_s = _seconds(settings, "ping_s", _PING_S)
        try:
            connection = await Connection.open(login.address, timeout=read_timeout_s)
        except (OSError, TimeoutError, ValueError) as error:
            log.warning(
                "paper_broker_silent", extra={"address": login.address, "error": f"{type(error).__name__}: {error}"}
            )
            raise NotReached(
                f"the paper broker of {login.server} does not answer; an operator starts it with `tradecopier paper`"
                " and gives its address to save_broker_server"
            ) from error
        line = _Line(
            connection=connection, take_seq=take_seq, server=login.server,
            order_timeout_s=order_timeout_s, read_timeout_s=read_timeout_s, ping_s=ping_s,
            connected_at=boot_time(), seen_at=datetime.now(UTC), changes=asyncio.Queue(),
            bucket=_bucket(settings),
        )  # fmt: skip
        connection.on_push = lambda message: _receive(line, message)
        connection.on_lost = line.changes.put_nowait
        try:
            state = await self._log_in(line, login, settings)
        except BaseException:
            await connection.close()
            raise
        line.ping = asyncio.create_task(_keep_alive(line), name="paper-ping")
        self._line = line
        return state

    async def _log_in(self, line: _Line, login: Login, settings: Mapping[str, object]) -> AccountState:
        opening = None
        if "balance" in settings:
            wanted = {key: settings[key] for key in ("balance", "leverage", "symbols", "profile") if key in settings}
            opening = {**wanted, "currency": login.currency, "mode": login.mode}
        try:
            async with asyncio.timeout(line.read_timeout_s):
                reply = await line.connection.call("login", login=login.login, password=login.password, open=opening)
            state: AccountState = decode(AccountState, reply)
            async with asyncio.timeout(line.read_timeout_s):
                line.profile = decode(Profile, await line.connection.call("profile"))
        except PaperRefused as error:
            # an internal error of the broker may be gone at the next attempt; any other refusal is definitive
            refusal = AdapterError if error.code == "internal" else LoginRefused
            raise refusal(f"the paper broker refused the login: {error}") from error
        except (PaperLost, TimeoutError, MalformedMessage) as error:
            # the answer is not shown: the address may belong to something else than a paper broker
            log.warning(
                "paper_login_unanswered", extra={"address": login.address, "error": f"{type(error).__name__}: {error}"}
            )
            raise AdapterError("the paper broker did not answer the login") from error
        return replace(state, server=login.server)

    async def close(self) -> None:
        line, self._line = self._line, None
        if line is None:
            return
        line.connection.on_lost = lambda _error: None
        line.changes.put_nowait(None)
        if line.ping is not None:
            line.ping.cancel()
            with suppress(asyncio.CancelledError):
                await line.ping
        await line.connection.close()

    # --- reading -----------------------------------------------------------------------------------

    async def account(self) -> AccountState:
        line = self._connected()
        state: AccountState = await self._read("account", AccountState)
        return replace(state, server=line.server)

    async def symbol(self, name: str) -> SymbolSpec | None:
        spec: SymbolSpec | None = await self._read("symbol", SymbolSpec | None, symbol=name)
        return spec

    async def symbols(self) -> tuple[str, ...]:
        names: tuple[str, ...] = await self._read("symbols", tuple[str, ...])
        return names

    async def quote(self, symbol: str) -> Quote | None:
        quote: Quote | None = await self._read("quote", Quote | None, symbol=symbol)
        return quote

    async def positions(self) -> tuple[Position, ...]:
        held: tuple[Position, ...] = await self._read("positions", tuple[Position, ...])
        return held

    async def orders(self) -> tuple[Position, ...]:
        pending: tuple[Position, ...] = await self._read("orders", tuple[Position, ...])
        return pending

    def changes(self) -> AsyncIterator[Change]:
        return self._changes_of(self._connected())

    async def _changes_of(self, line: _Line) -> AsyncIterator[Change]:
        while (change := await line.changes.get()) is not None:
            if isinstance(change, PaperLost):
                # the next reader of this connection must get it too
                line.changes.put_nowait(change)
                raise AdapterError(str(change))
            yield change

    async def find(self, order: Order) -> Found | NotFound:
        line = self._connected()
        traces: Traces = await self._read("find", Traces, tag=order.tag)
        ours = [record for record in traces.records if _matches(order, record)]
        if not ours:
            quiet = boot_time() - self._sent_at.get(order.tag, line.connected_at)
            return NotFound(conclusive=not traces.in_flight and quiet >= _SETTLE.total_seconds())
        keys = {key for record in ours for key in record.named()}
        filled = [record for record in ours if record.filled]
        return Found(
            positions=tuple(p for p in traces.positions if {(p.kind, p.ticket), (None, p.ticket)} & keys),
            lots=sum((record.filled for record in filled), start=order.lots - order.lots),
            price=filled[-1].price if filled else None,
        )

    # --- trading -----------------------------------------------------------------------------------

    async def place(self, order: Order) -> Result:
        line = self._line
        if line is None or line.connection.lost is not None:
            return rejected("not_connected")
        if order.send_before is not None and datetime.now(UTC) >= order.send_before:
            return Rejected(reason="too_late", retryable=False, message="its time was over before it could be sent")
        self._sent_at[order.tag] = boot_time()
        try:
            async with asyncio.timeout(line.order_timeout_s):
                reply = await line.connection.call("order", request=_request(order))
            answer: Answer = decode(Answer, reply)
        except PaperRefused as error:
            if error.code != "malformed":
                return Unknown(message=str(error))
            return Rejected(reason="invalid_request", retryable=False, message=str(error))
        except TimeoutError:
            # a connection on which an order got no answer is not used for another one
            line.connection.abort("the paper broker did not answer an order in time")
            return Unknown(message=f"no answer within {line.order_timeout_s} s")
        except (PaperLost, MalformedMessage) as error:
            return Unknown(message=str(error))
        match answer.status:
            case "done":
                return Placed(lots=answer.lots, price=answer.price, positions=answer.positions)
            case "refused":
                return rejected(answer.reason or "rejected", answer.message)
            case "timeout":
                return Unknown(message=answer.message)

    # --- inside ------------------------------------------------------------------------------------

    def _connected(self) -> _Line:
        if self._line is None:
            raise AdapterError("the paper account is not connected")
        return self._line

    async def _read(self, op: str, shape: Any, **fields: object) -> Any:
        line = self._connected()
        asked_at = datetime.now(UTC)
        try:
            async with asyncio.timeout(line.read_timeout_s):
                reply = await line.connection.call(op, **fields)
            found = decode(shape, reply)
        except TimeoutError:
            line.connection.abort(f"the paper broker did not answer `{op}` within {line.read_timeout_s} s")
            raise AdapterError(f"no answer to `{op}` within {line.read_timeout_s} s") from None
        except (PaperLost, PaperRefused, MalformedMessage) as error:
            raise AdapterError(f"`{op}` could not be read: {error}") from error
        line.seen_at = max(line.seen_at, asked_at)
        return found


async def _keep_alive(line: _Line) -> None:
    """Ping the broker; without an answer the connection ends."""
    while line.connection.lost is None:
        asked_at = datetime.now(UTC)
        try:
            async with asyncio.timeout(line.read_timeout_s):
                await line.connection.call("ping")
        except TimeoutError:
            line.connection.abort(f"no sign of life from the paper broker for {line.read_timeout_s} s")
            return
        except (PaperLost, PaperRefused):
            return
        line.seen_at = max(line.seen_at, asked_at)
        await asyncio.sleep(line.ping_s)


def _receive(line: _Line, message: dict[str, Any]) -> None:
    """Number a push at receipt and queue it."""
    now = datetime.now(UTC)
    changes: tuple[BookChange, ...] = decode(tuple[BookChange, ...], message.get("changes"))
    for change in changes:
        line.changes.put_nowait(
            Changed(
                seq=line.take_seq(), position=change.position, detected_at=now, unchanged_at=min(line.seen_at, now),
                evidence=change.evidence, close_reason=change.close_reason,
                deal_price=change.deal_price, dealt_at=change.dealt_at,
            )
        )  # fmt: skip
    line.seen_at = max(line.seen_at, now)


def _request(order: Order) -> Request:
    return Request(
        kind=order.kind, origin="expert", symbol=order.symbol, side=order.side, lots=order.lots,
        order_type=order.order_type, ticket=order.ticket, price=order.price, sl=order.sl, tp=order.tp,
        expires_at=order.expires_at, max_slippage_points=order.max_slippage_points,
        reference_price=order.reference_price, magic=order.tag, tag=order.tag, comment=order.comment,
    )  # fmt: skip


def _matches(order: Order, record: OrderRecord) -> bool:
    """Whether a broker's record belongs to `order`: another program may use the same tag."""
    if (record.kind, record.symbol, record.side) != (order.kind, order.symbol, order.side):
        return False
    if order.kind in ("market", "close", "pending"):
        return record.lots == order.lots
    return order.ticket in record.tickets


def _seconds(settings: Mapping[str, object], name: str, default: float) -> float:
    try:
        seconds = float(str(settings.get(name, default)))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise LoginRefused(
            f"settings.paper.{name} of the account is {settings.get(name)!r}; seconds above 0 are needed"
        )
    return seconds


def _bucket(settings: Mapping[str, object]) -> RateLimit | None:
    """The limit `orders_per_second` of the settings; the broker's profile may refuse more than its own limit."""
    if "orders_per_second" not in settings:
        return None
    try:
        return RateLimit(float(str(settings["orders_per_second"])))
    except ValueError as error:
        raise LoginRefused(f"settings.paper.orders_per_second of the account is no rate: {error}") from error


def _paper_settings(login: Login) -> Mapping[str, object]:
    own = login.settings.get("paper", {})
    return own if isinstance(own, Mapping) else {}
