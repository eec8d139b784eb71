"""The brokers of two hedging followers, H and C, and a netting one, N: what they hold, and what orders do to it."""

import itertools
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from quiet_world import OTHER, Key, Pair, QuietWorld

CENT = Decimal("0.01")
#: the size of every trade that a follower's user makes by himself on a hedging account
OWN = Decimal("0.07")
OPENING = ("open", "increase", "place")
Row = dict[str, Any]
#: lots dealt, and what was touched; None: there was nothing to do it to
Done = tuple[str, list[Row]] | None


@dataclass(slots=True)
class Holding:
    """A position or order of a hedging account; `pair` None: the user's own."""

    account: str
    kind: str
    ticket: str
    symbol: str
    side: str
    lots: Decimal
    sl: Any
    tp: Any
    tag: int | None
    pair: Pair | None
    #: what it began as
    root: str
    order_type: str = "limit"
    price: Any = None
    #: what it was before, under another ticket
    replaces: Key | None = None

    @property
    def key(self) -> Key:
        return self.kind, self.ticket


class Brokers:
    def __init__(
        self,
        world: QuietWorld,
        lots_min: Decimal = CENT,
        lots_max: Decimal = Decimal(50),
        *,
        retickets: bool = False,
        shares: bool = False,
    ) -> None:
        """`lots_min`: the least volume H deals, other than all of a position; `lots_max`: the most of one order.
        `retickets`: as MT4, with each partial close. `shares`: as on MT5, an order and a position may have one
        number."""
        self.world = world
        self.lots_min = lots_min
        self.lots_max = lots_max
        self.retickets = retickets
        self.shares = shares
        #: kind and number → what it began as
        self.root: dict[Key, str] = {}
        self.hedging: dict[Key, Holding] = {}
        #: what each account's broker calls EURUSD now
        self.symbols = dict.fromkeys(("H", "N", "C"), "EURUSD")
        self.net = Decimal(0)
        self.net_sl: Any = None
        self.net_tp: Any = None
        self.filled: set[int] = set()
        self.tickets = itertools.count(9000)

    def holdings(self, account: str, kind: str | None = None) -> dict[Key, Holding]:
        return {k: x for k, x in self.hedging.items() if x.account == account and x.lots > 0 and kind in (None, x.kind)}

    def add(self, x: Holding) -> Key:
        self.hedging[x.key] = x
        self.root[x.key] = x.root
        return x.key

    def number(self, account: str, kind: str, symbol: str) -> str:
        """A new one, or that of another kind in another symbol."""
        if self.shares:
            for other, ticket in self.holdings(account):
                there = self.hedging[other, ticket]
                if other != kind and (there.symbol == OTHER) != (symbol == OTHER) and (kind, ticket) not in self.root:
                    return ticket
        return str(next(self.tickets))

    def rename(self, account: str, new: str) -> None:
        old, self.symbols[account] = self.symbols[account], new
        for x in self.hedging.values():
            if x.account == account and x.symbol == old:
                x.symbol = new

    # -- what they show ----------------------------------------------------------------------------------------

    def state(self, key: Key) -> Row:
        x = self.hedging[key]
        more = {"kind": x.kind, "sl": _text(x.sl), "tp": _text(x.tp), "tag": _text(x.tag)}
        order = {"order_type": x.order_type, "price": str(x.price)} if x.kind == "order" else {}
        if x.replaces:
            order["replaces"] = x.replaces[1]
            if self.shares:
                order["replaces_kind"] = x.replaces[0]
        return self.world.position(str(x.lots), x.side, x.ticket, symbol=x.symbol) | more | order

    def net_state(self) -> list[Row]:
        side = "sell" if self.net < 0 else "buy"
        return [
            self.world.position(str(abs(self.net)), side, "net-1", symbol=self.symbols["N"])
            | {"sl": _text(self.net_sl), "tp": _text(self.net_tp)}
        ]

    def book(self, account: str) -> list[Row]:
        """What a snapshot shows."""
        if account == "N":
            return self.net_state() if self.net else []
        return [self.state(key) for key in self.holdings(account)]

    # -- what orders do ----------------------------------------------------------------------------------------

    def _fill_once(self, row: Row) -> None:
        assert row["id"] not in self.filled, f"execution {row['id']} is filled twice"
        self.filled.add(row["id"])

    def do(self, row: Row, pair: Pair | None, share: Decimal | None = None) -> Done:
        """The broker carries it out, or only a share of it."""
        assert row["action"] not in OPENING or row["lots"] <= self.lots_max, f"execution {row['id']} is too large"
        if row["follower"] == "N":
            return self._do_net(row, share)
        if row["action"] in OPENING:
            known = row["symbol"] in (OTHER, self.symbols[row["follower"]])
            return self._open(row, pair, share) if known else None
        touched = self._left_by(row["after_id"]) if row["ticket"] is None else [self._named(row)]
        dealt = [self._change(row, self.hedging[key], share) if key else None for key in touched]
        if None in dealt:
            return None
        new = [self.reticket(key) for key in touched if key and row["action"] == "reduce" and dealt[0]]
        shown = [self.state(key) for key in (*touched, *new) if key]
        return str(sum(lots for lots in dealt if lots is not None)), shown

    def _named(self, row: Row) -> Key | None:
        """What the execution means by its ticket; None: nothing of its kind has that number any more."""
        key = ("order" if row["action"] in ("cancel", "amend") else "position", row["ticket"])
        return key if key in self.hedging else None

    def _do_net(self, row: Row, share: Decimal | None) -> Done:
        if row["action"] == "modify":
            if not self.net:
                return None
            self.net_sl, self.net_tp = row["sl"], row["tp"]
            return "0", self.net_state()
        lots, direction = row["lots"], 1 if row["side"] == "buy" else -1
        if row["action"] != "open":  # by ticket: never more than is there, and not beyond its target
            if self.net * direction <= 0:
                return None
            held = abs(self.net)
            lots = min(lots, held - (row["target_lots"] if row["action"] == "reduce" else 0))
            if lots <= 0:
                return "0", self.net_state()
            direction = -direction
        lots = part(lots, share)
        self._fill_once(row)
        before = self.net
        self.net += lots * direction
        if row["sl"] is not None or row["tp"] is not None or before * self.net <= 0:
            self.net_sl, self.net_tp = row["sl"], row["tp"]
        return str(lots), self.net_state()

    def _open(self, row: Row, pair: Pair | None, share: Decimal | None) -> Done:
        kind = "order" if row["action"] == "place" else "position"
        lots = part(row["lots"], share if kind == "position" else None)
        self._fill_once(row)
        ticket = self.number(row["follower"], kind, row["symbol"])
        x = Holding(
            row["follower"],
            kind,
            ticket,
            row["symbol"],
            row["side"],
            lots,
            row["sl"],
            row["tp"],
            row["id"],
            pair,
            f"{kind} {ticket}",
            row["order_type"],
            row["price"],
        )
        return str(lots), [self.state(self.add(x))]

    def fill(self, key: Key) -> Key:
        """An order becomes a position, under its own number unless another has that already."""
        x = self.hedging.pop(key)
        x.kind = "position"
        if x.key in self.root:
            x.ticket, x.replaces = str(next(self.tickets)), key
        return self.add(x)

    def reticket(self, key: Key) -> Key | None:
        """What is left after a partial close goes on under another ticket, where the broker does so."""
        x = self.hedging[key]
        if not self.retickets or x.lots == 0:
            return None
        left = replace(x, ticket=str(next(self.tickets)), replaces=key)
        x.lots = Decimal(0)
        return self.add(left)

    def newest(self, key: Key) -> Key:
        root = self.root[key]
        return next(k for k, x in reversed(self.hedging.items()) if x.root == root)

    def of_root(self, account: str, root: str) -> Holding | None:
        return next((x for x in self.holdings(account).values() if x.root == root), None)

    def _left_by(self, step: int) -> list[Key]:
        ids = {
            row["id"] for row in self.world.rows("select id from public.trade_execution_queue where step_id = %s", step)
        }
        return [key for key, x in self.hedging.items() if x.tag in ids and x.lots > 0]

    def _change(self, row: Row, x: Holding, share: Decimal | None) -> Decimal | None:
        """Lots dealt of this holding; None: it is gone, or no order any more."""
        if x.lots == 0 or (row["action"] in ("cancel", "amend") and x.kind == "position"):
            return None
        if row["action"] in ("modify", "amend"):
            x.sl, x.tp = row["sl"], row["tp"]
            x.price = row["price"] if row["action"] == "amend" else x.price
            return Decimal(0)
        assert (
            row["action"] != "reduce" or row["target_lots"] == 0 or x.account != "H" or row["lots"] >= self.lots_min
        ), "too little"
        # an agent takes off no more than leaves the target
        wanted = max(Decimal(0), min(row["lots"], x.lots - row["target_lots"])) if row["action"] == "reduce" else x.lots
        dealt = min(wanted, part(wanted, share)) if row["action"] == "reduce" else wanted
        x.lots -= dealt
        return dealt


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def part(lots: Decimal, share: Decimal | None) -> Decimal:
    return lots if share is None else max(CENT, (lots * share).quantize(CENT))
