"""The rows of an account statement: reads and checks the CSV, cell by cell."""

import csv
import io
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

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
CLOSED_BY = re.compile(r"\bclose hedge by #(\d+)")
#: how far a clock may have been set back between two times of a trade
LARGEST_SET_BACK = timedelta(days=1)


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
    """One line of a statement. `lots` is the volume that this ticket closed; `closed_at` None means still open;
    `closed_by` is the ticket against which it was closed."""

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
    closed_by: str | None = None


def rows_of(path: str, text: str) -> list[Row]:
    """The rows of the CSV text, in its order. Raises `StatementError` with line and column."""
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
        closed_by = CLOSED_BY.search(self.values["comment"])
        if lots == 0 and closed_by is None:
            raise self.fault("lots", "a trade needs lots above 0, or the comment `close hedge by #N`")
        if price <= 0:
            raise self.fault("open_price", "a trade needs an open price above 0")
        if closed_at is not None and close_price <= 0:
            raise self.fault("close_price", "a closed trade needs a close price above 0")
        if closed_at is not None and closed_at < opened_at - LARGEST_SET_BACK:
            raise self.fault("close_time", "the trade closes more than a day before it opens")
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
            closed_by=None if closed_by is None else closed_by[1],
        )
