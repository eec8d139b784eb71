"""Account statements: turns a CSV of closed orders into the list of its owner's actions, in order.

Columns: ticket, open_time, side, lots, symbol, open_price, sl, tp, close_time, close_price, commission, swap, profit,
comment. Times are in the broker's local time, `YYYY.MM.DD HH:MM:SS`; a price or level of 0 means none; an empty
`close_time` means still open.

MetaTrader 4 gives the rest after a partial close a new ticket: the closed part says `to #N`, the rest `from #N`, and
both keep the open time and price. Such a chain of rows was one position, opened with the sum of their lots.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Literal

from agent.failure import Failure
from agent.model import Side

COLUMNS = [
    "ticket",
    "open_time",
    "side",
    "lots",
    "symbol",
    "open_price",
    "sl",
    "tp",
    "close_time",
    "close_price",
    "commission",
    "swap",
    "profit",
    "comment",
]
NUMBER = re.compile(r"[+-]?\d{1,12}(\.\d{1,10})?\Z")
LINK = re.compile(r"\b(from|to) #(\d+)")
LARGEST_FILE = 20_000_000
EXAMPLE = "example"


class StatementError(Failure):
    """A file that is not a valid statement; the message names file, line and column."""

    def __init__(self, path: str, line: int, column: str, message: str) -> None:
        where = f"{path}:{line}, column {column}" if column else f"{path}:{line}"
        super().__init__(
            f"{where}: {message}",
            "correct the CSV (format: tradecopier demo --help) and run the demo again; nothing was run",
            code="TC650",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a statement. `lots` is the volume that this ticket closed; `closed_at` None means still open."""

    line: int
    ticket: str
    opened_at: datetime
    side: Side
    lots: Decimal
    symbol: str
    open_price: Decimal
    sl: Decimal | None
    tp: Decimal | None
    closed_at: datetime | None
    close_price: Decimal
    profit: Decimal
    follows: str | None
    continues: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action of the owner: opened, reduced by `lots`, or closed the rest of position `key` at `price`."""

    kind: Literal["open", "reduce", "close"]
    key: str
    at: datetime
    symbol: str
    side: Side
    lots: Decimal
    price: Decimal
    sl: Decimal | None = None
    tp: Decimal | None = None
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    rows: tuple[Row, ...]
    actions: tuple[Action, ...]

    @property
    def symbols(self) -> dict[str, tuple[Decimal, ...]]:
        """Every symbol with all its prices, in the order of the actions."""
        prices: dict[str, list[Decimal]] = {}
        for action in self.actions:
            prices.setdefault(action.symbol, []).append(action.price)
        return {name: tuple(values) for name, values in prices.items()}


def read_statement(path: str) -> Statement:
    """Read a file, or the included example (`example`). Raises `StatementError`."""
    try:
        if path == EXAMPLE:
            content = (resources.files("agent.demo") / "statements" / "example.csv").read_bytes()
        else:
            file = Path(path)
            if file.is_file() and file.stat().st_size > LARGEST_FILE:
                raise StatementError(path, 1, "", "the file is larger than 20 MB")
            content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise StatementError(path, 1, "", f"the file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StatementError(path, 1, "", "the file is not UTF-8 text") from None
    return parse_statement(path, text)


def parse_statement(path: str, text: str) -> Statement:
    rows = tuple(_rows(path, text))
    if not rows:
        raise StatementError(path, 1, "", "the statement has no trades")
    actions = [action for chain in _chains(path, rows) for action in _actions(path, chain)]
    # Within the same second: opens before reductions before closes, otherwise in the order of the file.
    order = {"open": 0, "reduce": 1, "close": 2}
    actions.sort(key=lambda action: (action.at, order[action.kind], action.line))
    return Statement(rows=rows, actions=tuple(actions))


def _rows(path: str, text: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    tickets: dict[str, int] = {}
    try:
        header = [name.strip() for name in next(reader, [])]
        if header != COLUMNS:
            raise StatementError(path, 1, "", f"the first line must name the columns {','.join(COLUMNS)}")
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(COLUMNS):
                raise StatementError(
                    path, reader.line_num, "", f"the line has {len(values)} columns instead of {len(COLUMNS)}"
                )
            row = _Cells(
                path, reader.line_num, dict(zip(COLUMNS, (value.strip() for value in values), strict=True))
            ).row()
            if row.ticket in tickets:
                raise StatementError(
                    path, row.line, "ticket", f"ticket {row.ticket} already appears in line {tickets[row.ticket]}"
                )
            tickets[row.ticket] = row.line
            rows.append(row)
    except csv.Error as error:
        raise StatementError(path, reader.line_num, "", f"this is not CSV: {error}") from None
    return rows


@dataclass(frozen=True, slots=True)
class _Cells:
    path: str
    line: int
    values: dict[str, str]

    def fault(self, column: str, message: str) -> StatementError:
        return StatementError(self.path, self.line, column, message)

    def number(self, column: str, *, least: Decimal | None = None, optional: bool = False) -> Decimal:
        value = self.values[column]
        if optional and not value:
            return Decimal(0)
        if not NUMBER.match(value):
            raise self.fault(column, f"{value!r} is not a decimal number")
        number = Decimal(value)
        if least is not None and number < least:
            raise self.fault(column, f"{value} is below {least}")
        return number

    def time(self, column: str) -> datetime:
        value = self.values[column]
        try:
            # The broker's local time: stored without a zone, because only the order matters.
            return datetime.strptime(value, "%Y.%m.%d %H:%M:%S")  # noqa: DTZ007
        except ValueError:
            raise self.fault(column, f"{value!r} is not a time like 2025.05.26 19:36:41") from None

    def side(self) -> Side:
        match self.values["side"]:
            case "buy":
                return "buy"
            case "sell":
                return "sell"
            case other:
                raise self.fault("side", f"{other!r} is neither buy nor sell")

    def row(self) -> Row:
        for column in ("ticket", "symbol"):
            if not self.values[column] or len(self.values[column]) > 64:
                raise self.fault(column, f"{column} must have 1 to 64 characters")
        links = dict(LINK.findall(self.values["comment"]))
        opened_at = self.time("open_time")
        closed_at = self.time("close_time") if self.values["close_time"] else None
        lots = self.number("lots", least=Decimal(0))
        price = self.number("open_price")
        close_price = self.number("close_price", least=Decimal(0), optional=closed_at is None)
        sl, tp = self.number("sl", least=Decimal(0), optional=True), self.number("tp", least=Decimal(0), optional=True)
        for column in ("commission", "swap"):
            self.number(column, optional=True)
        if lots == 0:
            raise self.fault("lots", "a trade needs lots above 0")
        if price <= 0:
            raise self.fault("open_price", "a trade needs an open price above 0")
        if closed_at is not None and close_price <= 0:
            raise self.fault("close_price", "a closed trade needs a close price above 0")
        if closed_at is not None and closed_at < opened_at:
            raise self.fault("close_time", "the trade closes before it opens")
        return Row(
            line=self.line,
            ticket=self.values["ticket"],
            opened_at=opened_at,
            side=self.side(),
            lots=lots,
            symbol=self.values["symbol"],
            open_price=price,
            sl=sl or None,
            tp=tp or None,
            closed_at=closed_at,
            close_price=close_price,
            profit=self.number("profit", optional=True),
            follows=links.get("from"),
            continues=links.get("to"),
        )


def _chains(path: str, rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that were one position, in the order in which they closed.

    A link to a ticket outside the file is ignored.
    """
    by_ticket = {row.ticket: row for row in rows}
    after: dict[str, Row] = {}
    before: set[str] = set()
    for row in rows:
        pairs = []
        if row.follows in by_ticket:
            pairs.append((by_ticket[row.follows], row, row.line))
        if row.continues in by_ticket:
            pairs.append((row, by_ticket[row.continues], row.line))
        for first, second, line in pairs:
            if after.get(first.ticket, second) is not second:
                raise StatementError(path, line, "comment", f"ticket {first.ticket} is continued by two others")
            if after.get(first.ticket) is None and second.ticket in before:
                raise StatementError(path, line, "comment", f"ticket {second.ticket} continues two others")
            _check_link(path, line, first, second)
            after[first.ticket] = second
            before.add(second.ticket)
    chains = []
    for row in rows:
        if row.ticket in before:
            continue
        chain = [row]
        while (rest := after.get(chain[-1].ticket)) is not None:
            chain.append(rest)
        chains.append(chain)
    if sum(len(chain) for chain in chains) != len(rows):
        raise StatementError(path, rows[0].line, "comment", "the from/to links of some tickets form a circle")
    return chains


def _check_link(path: str, line: int, first: Row, second: Row) -> None:
    if (first.symbol, first.side) != (second.symbol, second.side):
        raise StatementError(
            path, line, "comment", f"ticket {second.ticket} cannot be the rest of {first.ticket}: symbol or side differ"
        )
    if first.closed_at is None or (second.closed_at is not None and second.closed_at < first.closed_at):
        raise StatementError(
            path, line, "comment", f"ticket {second.ticket} cannot be the rest of {first.ticket}, which closes after it"
        )


def _actions(path: str, chain: Sequence[Row]) -> list[Action]:
    first = chain[0]
    total = sum((row.lots for row in chain), Decimal(0))
    actions = [
        Action(
            kind="open", key=first.ticket, at=first.opened_at, symbol=first.symbol, side=first.side, lots=total,
            price=first.open_price, sl=chain[-1].sl, tp=chain[-1].tp, line=first.line,
        )
    ]  # fmt: skip
    for row in chain:
        if row.closed_at is None:
            break
        kind: Literal["reduce", "close"] = "close" if row is chain[-1] else "reduce"
        actions.append(
            Action(
                kind=kind, key=first.ticket, at=row.closed_at, symbol=row.symbol, side=row.side, lots=row.lots,
                price=row.close_price, line=row.line,
            )
        )  # fmt: skip
    return actions
