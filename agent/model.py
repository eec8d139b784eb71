"""The agent's nouns: what accounts hold, what is to be done, and what came of it.

Lots, prices and money are `Decimal`; times are aware `datetime` in UTC. Everything is immutable.
This is the bottom module: everybody may import it, it imports nothing of the project.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal, NewType

AccountId = NewType("AccountId", str)
ExecutionId = NewType("ExecutionId", int)
Ticket = NewType("Ticket", str)

Side = Literal["buy", "sell"]
Mode = Literal["hedging", "netting"]
Kind = Literal["position", "order"]
OrderType = Literal["market", "limit", "stop"]
TradeMode = Literal["full", "long_only", "short_only", "close_only", "disabled"]
Action = Literal["open", "increase", "reduce", "close", "modify", "place", "amend", "cancel"]
EventType = Literal["opened", "increased", "reduced", "modified", "closed", "ordered", "amended", "cancelled", "snapshot"]
Evidence = Literal["deal", "snapshots"]
CloseReason = Literal["client", "sl", "tp", "stop_out", "expert", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Whole state of one position, or of one pending order (`kind`). `lots` 0 means that it is gone."""

    ticket: Ticket
    kind: Kind
    symbol: str
    side: Side
    lots: Decimal
    price: Decimal
    sl: Decimal | None = None
    tp: Decimal | None = None
    order_type: OrderType | None = None
    magic: int = 0
    comment: str = ""
    opened_at: datetime | None = None
    expires_at: datetime | None = None
    #: number of the execution that made it, when the adapter recognises one of ours
    tag: ExecutionId | None = None
    #: ticket that this one continues (MT4 re-ticketing, a filled pending order)
    replaces: Ticket | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolSpec:
    """An instrument as one account sees it. `contract_size` is units per lot, `tick_size` in price units."""

    name: str
    contract_size: Decimal
    digits: int
    tick_size: Decimal
    profit_currency: str
    margin_currency: str
    lots_min: Decimal
    lots_max: Decimal
    lots_step: Decimal
    stops_level_points: int = 0
    freeze_level_points: int = 0
    trade_mode: TradeMode = "full"


@dataclass(frozen=True, slots=True)
class Quote:
    symbol: str
    bid: Decimal
    ask: Decimal
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """Figures of an account, money in `currency`. `login` and `server` are what the terminal itself says."""

    login: str
    server: str
    currency: str
    mode: Mode
    leverage: int
    balance: Decimal
    equity: Decimal
    margin: Decimal
    free_margin: Decimal
    trade_allowed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What an adapter needs to open a connection. `settings` is the platform's own business."""

    account_id: AccountId
    platform: str
    server: str
    login: str
    password: str = field(repr=False, default="")
    mode: Mode = "hedging"
    currency: str = "USD"
    settings: Mapping[str, object] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------
# What an adapter reports by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A position or order is now as `position` says; gone when its lots are 0.

    `seq` was taken from the account's counter before the read began (a push: at receipt).
    `unchanged_at` is the last moment the account was seen without the change. `deal_price` and `dealt_at` (on this machine's
    clock) are of the deal that made the change, where the platform tells it.
    """

    seq: int
    position: Position
    detected_at: datetime
    unchanged_at: datetime
    evidence: Evidence | None = None
    close_reason: CloseReason | None = None
    deal_price: Decimal | None = None
    dealt_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """The adapter cannot say what changed (reconnect, gap): read everything again."""

    why: str


Change = Changed | Resync


# ---------------------------------------------------------------------------------------------------------
# Orders and their results


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request to a broker.

    market: open, or on a netting account any deal. close: take `lots` off position `ticket` (`side` is the side of the
    position). modify: set both `sl` and `tp` of position `ticket` (None removes). pending: place a limit or stop order.
    amend / cancel: change or delete pending order `ticket`.
    """

    tag: ExecutionId
    kind: Literal["market", "close", "modify", "pending", "amend", "cancel"]
    symbol: str
    side: Side
    lots: Decimal
    order_type: OrderType = "market"
    ticket: Ticket | None = None
    price: Decimal | None = None
    sl: Decimal | None = None
    tp: Decimal | None = None
    expires_at: datetime | None = None
    max_slippage_points: int | None = None
    #: the price `max_slippage_points` is measured from
    reference_price: Decimal | None = None
    comment: str = ""
    #: on this machine's wall clock: from then on nobody may hand it to the broker any more. The last process before the broker
    #: checks it right before sending and answers `Rejected("too_late")`.
    send_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The broker did it. `positions`: whole state afterwards of everything the order touched (lots 0 = gone)."""

    lots: Decimal
    price: Decimal | None
    positions: tuple[Position, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Definitive evidence that the broker did NOT do it. `reason` is a code of docs/errors.md."""

    reason: str
    retryable: bool
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """No definitive answer: the order may have been executed. Never a failure, never a reason to send again."""

    message: str


Result = Placed | Rejected | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What `find(tag)` saw. `lots` is the volume that the tagged order filled (0: pending, or cancelled unfilled)."""

    positions: tuple[Position, ...]
    lots: Decimal
    price: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFound:
    """No trace of the tag. `conclusive` only when connected, history synchronised and the settle time over."""

    conclusive: bool


# ---------------------------------------------------------------------------------------------------------
# Executions: rows of trade_execution_queue as docs/protocol.md describes them


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    id: ExecutionId
    attempt: int
    account_id: AccountId
    epoch: int
    link_id: str | None
    lane: str
    step_id: str
    after_id: str | None
    action: Action
    priority: int
    symbol: str
    side: Side
    order_type: OrderType
    lots: Decimal
    target_lots: Decimal | None
    ticket: Ticket | None
    price: Decimal | None
    sl: Decimal | None
    tp: Decimal | None
    max_slippage_points: int | None
    master_price: Decimal | None
    expires_at: datetime | None
    comment: str
    investigate: bool
    detected_at: datetime | None
    queued_at: datetime
    send_before: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An execution that this agent cannot read (it may be too old for it). It is reported as rejected, never guessed."""

    id: ExecutionId
    attempt: int
    account_id: AccountId
    why: str


Offered = Execution | Unreadable

Outcome = Literal["completed", "rejected", "expired", "cancelled", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of one attempt; times on the database's clock."""

    account_id: AccountId
    session: int
    seq: int
    execution_id: ExecutionId
    attempt: int
    outcome: Outcome
    reason: str | None = None
    retryable: bool = False
    message: str = ""
    adopted: bool = False
    filled_lots: Decimal = Decimal(0)
    price: Decimal | None = None
    positions: tuple[Position, ...] = ()
    #: what the market was when the broker refused the levels
    quote: Quote | None = None
    received_at: datetime | None = None
    sent_at: datetime | None = None
    done_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One trade event of an account (docs/protocol.md, `queue_trade_copy`). A snapshot carries `positions`."""

    account_id: AccountId
    session: int
    seq: int
    type: EventType
    position: Position | None = None
    positions: tuple[Position, ...] = ()
    evidence: Evidence | None = None
    close_reason: CloseReason | None = None
    detected_at: datetime
    unchanged_at: datetime | None = None
    #: the deal that made the change, where the platform tells it
    deal_price: Decimal | None = None
    dealt_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """An account that this agent works, from `begins_at` on, with its fencing token."""

    account_id: AccountId
    epoch: int
    platform: str
    server: str
    login: str
    mode: Mode
    currency: str
    settings: Mapping[str, object]
    begins_at: datetime
    watch_symbols: tuple[str, ...]
    #: a protection rule watches what is open: the account's figures are wanted every second
    watch_funds: bool = False
