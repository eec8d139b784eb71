"""The agent's data types: positions, orders, executions, reports and events.

Lots, prices and money are `Decimal`; times are aware `datetime` in UTC. Everything is immutable.
This is the lowest module: every other one may import it, and it imports none.
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
EventType = Literal[
    "opened", "increased", "reduced", "modified", "closed", "ordered", "amended", "cancelled", "snapshot"
]
Evidence = Literal["deal", "snapshots"]
CloseReason = Literal["client", "sl", "tp", "stop_out", "expert", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The whole state of one position, or of one pending order (`kind`). 0 `lots` mean that it is gone."""

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
    #: number of our execution that made it; None if the adapter finds none
    tag: ExecutionId | None = None
    #: the ticket that this one continues (MT4 re-ticketing, a filled pending order)
    replaces: Ticket | None = None
    #: what that ticket was; None: not known. "position" without a ticket: no order became this position
    replaces_kind: Kind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolSpec:
    """An instrument of one account. `contract_size` is in units per lot, `tick_size` in price units."""

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
    #: prices of the instrument may be 0 or below
    allow_negative: bool = False


@dataclass(frozen=True, slots=True)
class Quote:
    symbol: str
    bid: Decimal
    ask: Decimal
    at: datetime


@dataclass(frozen=True, slots=True)
class BalanceOperation:
    """A deposit (above 0) or withdrawal (below 0), with the broker's own number. Never credit, bonus, swap or
    commission."""

    number: str
    amount: Decimal
    at: datetime

    @property
    def kind(self) -> Literal["deposit", "withdrawal"]:
        return "deposit" if self.amount > 0 else "withdrawal"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """Figures of an account, money in `currency`. `login` and `server` are those that the terminal reports.

    `balance_operations` are the latest (at least 100, those made while nobody looked included) that these figures
    contain. They are read together with the figures: an operation that is missing here must be missing in `balance`.
    """

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
    balance_operations: tuple[BalanceOperation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What an adapter needs to open a connection. The meaning of `settings` is up to the platform, but they never name
    a server: only `address` does, which comes from the table broker_servers."""

    account_id: AccountId
    platform: str
    server: str
    login: str
    #: host:port of the server; empty where the platform finds its servers by name
    address: str = ""
    password: str = field(repr=False, default="")
    mode: Mode = "hedging"
    currency: str = "USD"
    settings: Mapping[str, object] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------
# Changes that an adapter pushes


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """The state of a position or order has changed to `position`; 0 lots mean that it is gone.

    `seq` was taken from the account's counter before the read began (for a push: at receipt). `unchanged_at` is the
    time of the last read without the change. `deal_price` and `dealt_at` (on this machine's clock) belong to the deal
    that made the change, where the platform reports it.
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
    """The adapter may have missed changes (reconnect, gap): read the whole account again."""

    why: str


Change = Changed | Resync


# ---------------------------------------------------------------------------------------------------------
# Orders and their results


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request to a broker.

    market: open, or on a netting account any deal. close: close `lots` of position `ticket` (`side` is the side of the
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
    #: the price from which `max_slippage_points` is measured
    reference_price: Decimal | None = None
    comment: str = ""
    #: deadline on this machine's wall clock: the last process before the broker checks it right before sending and
    #: answers `Rejected("too_late")` if it has passed
    send_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The broker executed the order. `lots`: the filled volume. `positions`: the state after the order of every
    position and pending order that it changed (0 lots: gone)."""

    lots: Decimal
    price: Decimal | None
    positions: tuple[Position, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The broker certainly did not execute the order. `reason` is a code of docs/errors.md."""

    reason: str
    retryable: bool
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """No definitive answer: the order may have been executed. Neither a failure nor a reason to send it again."""

    message: str


Result = Placed | Rejected | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The tagged order exists. `lots` is its filled volume (0: pending, or cancelled unfilled)."""

    positions: tuple[Position, ...]
    lots: Decimal
    price: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFound:
    """No trace of the tag. `conclusive` only when connected, with the history complete and the settle time over."""

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
    #: tells orders under one number apart; never used as a time
    detected_at: datetime | None
    queued_at: datetime
    send_before: datetime
    #: when the database had planned it, if the message that brought it first said so; reported back
    planned_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An execution that this agent cannot decode (the agent may be too old). It is reported as rejected."""

    id: ExecutionId
    attempt: int
    account_id: AccountId
    why: str


Offered = Execution | Unreadable

OutcomeStatus = Literal["completed", "rejected", "expired", "cancelled", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of one attempt; times are on the database's clock."""

    account_id: AccountId
    session: int
    seq: int
    execution_id: ExecutionId
    attempt: int
    outcome: OutcomeStatus
    reason: str | None = None
    retryable: bool = False
    message: str = ""
    adopted: bool = False
    filled_lots: Decimal = Decimal(0)
    price: Decimal | None = None
    positions: tuple[Position, ...] = ()
    #: the market price when the broker refused the levels
    quote: Quote | None = None
    planned_at: datetime | None = None
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
    #: the deal that made the change, where the platform reports it
    deal_price: Decimal | None = None
    dealt_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """An account that this agent works from `begins_at` on; `epoch` is its fencing token."""

    account_id: AccountId
    epoch: int
    platform: str
    server: str
    login: str
    mode: Mode
    currency: str
    #: grows with each change of its settings or password, which `account_credentials` returns
    revision: int
    begins_at: datetime
    watch_symbols: tuple[str, ...]
    #: a protection rule watches the account: its figures are reported every second
    watch_funds: bool = False
    #: sizes depend on the account's money: its figures are reported right behind each fill
    funds_after_fills: bool = False
    #: an opaque value, equal for the accounts of one user ("": unknown)
    owner: str = ""
