"""Account statements: turns a CSV of closed orders into the list of its owner's actions, in order.

Columns: ticket, open_time, side, lots, symbol, open_price, sl, tp, close_time, close_price, commission, swap, profit,
comment. Times are in the broker's local time, `YYYY.MM.DD HH:MM:SS`; a price or level of 0 means none; an empty
`close_time` means still open.

A clock that was set back can make a trade close before it opens: up to a day, the close then counts as the moment of
the open.

MetaTrader 4 gives the rest after a partial close a new ticket: the closed part says `to #N`, the rest `from #N`, and
both keep the open time and price. Such a chain of rows was one position, opened with the sum of their lots. Of two
positions that were closed by each other, one row has the volume; the other says `close hedge by #N` and has 0.00 lots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Literal

from agent.demo.statement_rows import LARGEST_SET_BACK, Row, StatementError, rows_of
from agent.model import Side

EXAMPLE = "example"
LARGEST_FILE = 20_000_000


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
    """`rows` that were replayed, and the owner's `actions`. `left_out`: lines of rows whose volume is nowhere in the
    file."""

    rows: tuple[Row, ...]
    actions: tuple[Action, ...]
    left_out: tuple[int, ...] = ()

    @property
    def volumes(self) -> dict[str, tuple[Decimal, ...]]:
        """Every symbol with the volumes of all actions and rows."""
        volumes: dict[str, list[Decimal]] = {}
        for symbol, lots in [(a.symbol, a.lots) for a in self.actions] + [(r.symbol, r.lots) for r in self.rows]:
            volumes.setdefault(symbol, []).append(lots)
        return {name: tuple(values) for name, values in volumes.items()}

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
    read = rows_of(path, text)
    rows = tuple(row for row in _with_counterparts(read) if row.lots)
    if not rows:
        raise StatementError(path, 1, "", "the statement has no trades")
    actions = [action for chain in _chains(path, rows) for action in _actions(path, chain)]
    # Within the same second: opens before reductions before closes, otherwise in the order of the file.
    order = {"open": 0, "reduce": 1, "close": 2}
    actions.sort(key=lambda action: (action.at, order[action.kind], action.line))
    left_out = tuple(sorted({row.line for row in read} - {row.line for row in rows}))
    return Statement(rows=rows, actions=tuple(actions), left_out=left_out)


def _with_counterparts(rows: Sequence[Row]) -> list[Row]:
    """The rows; those without a volume have that of the position by which they were closed, if the file tells it."""
    volumes = {row.ticket: row.lots for row in rows}
    return [row if row.lots else replace(row, lots=volumes.get(row.closed_by or "", row.lots)) for row in rows]


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
    if first.closed_at is None or (
        second.closed_at is not None and second.closed_at < first.closed_at - LARGEST_SET_BACK
    ):
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
    at = first.opened_at
    for row in chain:
        if row.closed_at is None:
            break
        at = max(at, row.closed_at)
        kind: Literal["reduce", "close"] = "close" if row is chain[-1] else "reduce"
        actions.append(
            Action(
                kind=kind, key=first.ticket, at=at, symbol=row.symbol, side=row.side, lots=row.lots,
                price=row.close_price, line=row.line,
            )
        )  # fmt: skip
    return actions
