"""The contents of a scenario file as values: accounts, symbols, prices, copiers, steps. Numbers are exact `Decimal`s.

Names of accounts and of what they hold (`as:`) are local to the file. `line` is the line number in the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from agent.model import Mode, OrderType, Side
from agent.paper.profile import Profile
from agent.paper.records import OrderFault, SnapshotFault

Removal = Literal["preserve", "close_gracefully", "close_now"]

#: the value of a copier's column: text, an exact number, a switch, null, or a list
Value = str | Decimal | bool | None | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    name: str
    line: int
    platform: str = "paper"
    currency: str = "USD"
    balance: Decimal = Decimal(10000)
    leverage: int = 100
    mode: Mode = "hedging"
    #: accounts that name the same VPS share one agent; None: a VPS of its own
    vps: str | None = None
    broker: Profile | None = None
    #: False: its platform shows no quote of a symbol before a step of the script sets its price
    quoted_at_first: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbol:
    """`account` None: it applies to every account. `spec` contains only what the file sets."""

    account: str | None
    name: str
    spec: Mapping[str, str | int | bool | Decimal]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Bid and ask of a symbol, on one account or (`account` None) on every account that offers it."""

    account: str | None
    symbol: str
    bid: Decimal
    ask: Decimal
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Copier:
    master: str
    follower: str
    columns: Mapping[str, Value]
    line: int


# ---------------------------------------------------------------------------------------------------------
# Steps: actions of an account's human


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    account: str
    side: Side
    symbol: str
    lots: Decimal
    sl: Decimal | None
    tp: Decimal | None
    alias: str | None
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """The comment of the account's next order."""

    account: str
    text: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename:
    """The account's broker gives symbols other names: old → new."""

    account: str
    names: Mapping[str, str]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Place a pending order."""

    account: str
    side: Side
    order_type: OrderType
    symbol: str
    lots: Decimal
    price: Decimal
    sl: Decimal | None
    tp: Decimal | None
    #: seconds until the order expires
    expires_s: float | None
    alias: str | None
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """`target` is an alias of the account, or a symbol: then everything it holds of that symbol. `lots` None: all."""

    account: str
    target: str
    lots: Decimal | None
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Modify:
    """None leaves a value unchanged; a level of 0 removes it. `price` only for a pending order."""

    account: str
    target: str
    price: Decimal | None
    sl: Decimal | None
    tp: Decimal | None
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    account: str
    target: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseBy:
    account: str
    target: str
    other: str
    line: int


# ---------------------------------------------------------------------------------------------------------
# Steps: actions of users and operators, and faults


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPrices:
    prices: tuple[Price, ...]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveMoney:
    """Deposits (above 0) and withdrawals (below 0), in each account's currency."""

    amounts: Mapping[str, Decimal]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeCopier:
    index: int
    columns: Mapping[str, Value]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Protect:
    """A protection rule of an account: `settings` as `save_protection_rule` takes them."""

    account: str
    settings: Mapping[str, Value]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveCopier:
    index: int
    mode: Removal
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """The copier's user performs this action on every difference that offers it."""

    index: int
    action: Literal["copy", "close", "dismiss"]
    max_distance_points: Decimal | None
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTrading:
    """The operators' trading switch, which applies to everybody."""

    state: Literal["on", "monitor", "off"]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailOrders:
    account: str
    count: int
    kind: OrderFault
    #: the fraction of the volume that a partial fill executes
    share: Decimal
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailSnapshots:
    account: str
    count: int
    kind: SnapshotFault
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """`what`: broadcasts or database (for `seconds`, starting now), agent (killed and restarted), vps (killed
    permanently)."""

    what: Literal["broadcasts", "database", "agent", "vps"]
    seconds: float
    name: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Deliver the last `events` events of `account` again, newest first. None: the master of the first copier."""

    events: int
    account: str | None
    line: int


# ---------------------------------------------------------------------------------------------------------
# Steps: expectations


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One expected position or pending order; `keys` contains only the keys that the file sets."""

    keys: Mapping[str, str | Decimal]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectBook:
    """The whole book of an account, in any order: positions, or pending orders."""

    kind: Literal["position", "order"]
    books: Mapping[str, tuple[Holding, ...]]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectReasons:
    counts: Mapping[str, Mapping[str, int]]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectDrift:
    """The number of differences by reason that a copier's user sees."""

    index: int
    counts: Mapping[str, int]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectSent:
    counts: Mapping[str, int]
    line: int


Action = Open | Place | Close | Modify | Cancel | CloseBy | Comment
Surrounding = (
    SetPrices
    | Rename
    | MoveMoney
    | ChangeCopier
    | Protect
    | RemoveCopier
    | Resync
    | SetTrading
    | FailOrders
    | FailSnapshots
    | Drop
    | Replay
)
Expectation = ExpectBook | ExpectReasons | ExpectDrift | ExpectSent
Step = Action | Surrounding | Expectation


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    path: str
    name: str
    accounts: Mapping[str, Account]
    symbols: tuple[Symbol, ...] = ()
    prices: tuple[Price, ...] = ()
    copiers: tuple[Copier, ...] = ()
    steps: tuple[Step, ...] = field(default=())
    #: rows of docs/scenarios.md that the file shows
    covers: tuple[str, ...] = ()
