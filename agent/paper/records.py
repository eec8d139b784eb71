"""Requests to the paper broker, its answers, and its records.

Positions and orders are the product's own `Position`; everything here is immutable and can be encoded as JSON.
Money is in the account's currency, volumes are lots, times are on the broker's clock (UTC).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

from agent.model import AccountState, CloseReason, Evidence, Kind, OrderType, Position, Side, SymbolSpec

RequestKind = Literal["market", "close", "close_by", "modify", "pending", "amend", "cancel"]
#: who sent the request: the account's human or a connected program
Origin = Literal["client", "expert"]
DealEntry = Literal["balance", "in", "out", "out_by"]
DealReason = Literal["balance", "client", "expert", "sl", "tp", "stop_out"]
OrderFault = Literal[
    "reject", "requote", "timeout_executed", "timeout_lost", "partial", "no_money", "market_closed", "hang", "bare",
    "price_changed", "too_many_requests", "autotrading_off", "investor_password",
]  # fmt: skip
SnapshotFault = Literal["none", "empty", "error", "stale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One order request. `lots` None on a close means the whole position; `tag` is the sender's own number for it.

    modify and amend always carry the complete new state (None removes), so there is no `price_given`, `sl_given` and so
    on.
    """

    kind: RequestKind
    origin: Origin = "client"
    symbol: str = ""
    side: Side = "buy"
    lots: Decimal | None = None
    order_type: OrderType = "market"
    ticket: str | None = None
    #: for close_by: the opposite position
    other_ticket: str | None = None
    price: Decimal | None = None
    sl: Decimal | None = None
    tp: Decimal | None = None
    expires_at: datetime | None = None
    max_slippage_points: int | None = None
    reference_price: Decimal | None = None
    magic: int = 0
    tag: int | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of a request. `timeout`: the broker does not say (the request may have been executed)."""

    status: Literal["done", "refused", "timeout"]
    reason: str | None = None
    message: str = ""
    lots: Decimal = Decimal(0)
    price: Decimal | None = None
    positions: tuple[Position, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """One booking. `lots` has no sign: `side` and `entry` give the direction. Balance = Σ (profit + commission)."""

    number: int
    at: datetime
    entry: DealEntry
    reason: DealReason
    #: the position of the deal; None for a deposit or withdrawal
    ticket: str | None = None
    order: str | None = None
    symbol: str = ""
    side: Side = "buy"
    lots: Decimal = Decimal(0)
    price: Decimal = Decimal(0)
    profit: Decimal = Decimal(0)
    commission: Decimal = Decimal(0)
    tag: int | None = None
    magic: int = 0
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRecord:
    """One order in the history of a book: a request that the broker executed, fully or in part."""

    number: int
    at: datetime
    kind: RequestKind
    symbol: str
    side: Side
    #: the requested volume; the executed volume is `filled`
    lots: Decimal
    filled: Decimal
    price: Decimal | None
    tag: int | None
    #: every position and order that it changed
    tickets: tuple[str, ...]
    #: what each of them is; empty in records of an older broker
    kinds: tuple[Kind, ...] = ()

    def named(self) -> tuple[tuple[Kind | None, str], ...]:
        """Kind and number of each; the kind is None where it is not known."""
        kinds = self.kinds or (None,) * len(self.tickets)
        return tuple(zip(kinds, self.tickets, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One order request as received, executed or not: the broker's evidence of what was sent to it."""

    number: int
    at: datetime
    kind: RequestKind
    origin: Origin
    symbol: str
    side: Side
    lots: Decimal | None
    tag: int | None
    #: executed: the book changed (even if the answer was lost); refused: it did not change; lost: the request never
    #: reached the book; open: not decided yet
    outcome: Literal["open", "executed", "refused", "lost"]
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One line of a book's append-only journal; numbers start at 1 and have no gaps."""

    number: int
    at: datetime
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BookChange:
    """Pushed to every session of the book: the new state of a position or order (lots 0: gone).

    A filled pending order or an MT4-style partial close pushes only the new ticket, whose `replaces` names the old one.
    """

    position: Position
    evidence: Evidence | None = None
    close_reason: CloseReason | None = None
    #: the deal that caused the change, if any
    deal_price: Decimal | None = None
    dealt_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Everything a book knows about one tag. `in_flight`: a request with this tag is being processed right now."""

    records: tuple[OrderRecord, ...]
    #: current (or last) state of every ticket in `records`; closed ones have lots 0
    positions: tuple[Position, ...]
    in_flight: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a book holds at one moment: its open positions and pending orders."""

    login: str
    positions: tuple[Position, ...]
    orders: tuple[Position, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BookView(Holdings):
    """A complete book at one moment. It grows with every deal; whoever asks again and again asks for `Holdings`."""

    state: AccountState
    deals: tuple[Deal, ...]
    symbols: tuple[SymbolSpec, ...]

    @property
    def balance(self) -> Decimal:
        return self.state.balance

    @property
    def equity(self) -> Decimal:
        return self.state.equity
