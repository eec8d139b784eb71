"""The agents and brokers of a hedging follower H and a netting follower N: what becomes of executions, decided at random.

The brokers' books are the truth; what is reported of them may come late, twice, in another order or not at all.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from planner_world import World
from random_masters import Doubts, Masters, Pair, pick

CENT = Decimal("0.01")
OWN = Decimal("0.07")
OPENING = ("open", "increase", "place")
Row = dict[str, Any]


@dataclass(slots=True)
class Holding:
    """A position or order at H's broker; `pair` None: the user's own."""

    kind: str
    side: str
    lots: Decimal
    sl: Any
    tag: int | None
    pair: Pair | None


class Followers:
    def __init__(self, world: World, masters: Masters, doubts: Doubts) -> None:
        self.world = world
        self.masters = masters
        self.doubts = doubts
        self.hedging: dict[str, Holding] = {}
        self.net = Decimal(0)
        self.net_sl: Any = None
        #: how much the user dealt on N in all, whatever the side
        self.own_on_net = Decimal(0)
        self.filled: set[int] = set()
        self._tickets = itertools.count(9000)
        self._started: dict[tuple[int, int], str] = {}
        self._lost: list[tuple[Row, tuple[str, list[Row]] | None, bool]] = []
        self._delaying = False
        self._late: list[tuple[str, Row]] = []
        self._told: list[tuple[str, Row]] = []
        self._refused: list[Row] = []

    # -- what an agent may start -------------------------------------------------------------------------------

    def queue(self) -> list[Row]:
        """The first unfinished execution of every lane that waits for no step."""
        rows = self.world.rows(
            "select q.*, a.name as follower from public.trade_execution_queue q join public.trading_accounts a"
            " on a.id = q.account_id where finalized_at is null order by q.id"
        )
        ready: list[Row] = []
        busy: set[str] = set()
        for row in rows:
            stage = self._started.get((row["id"], row["attempt"]))
            if stage == "done" or row["lane"] in busy:
                continue
            busy.add(row["lane"])
            if stage != "lost" and row["status"] == "queued" and not self._waits(row, rows):
                ready.append(row)
        return ready

    def _waits(self, row: Row, rows: Sequence[Row]) -> bool:
        overtakes = row["action"] == "close" and row["ticket"] is None
        return not overtakes and any(
            other["step_id"] == row["after_id"]
            and other["id"] < row["id"]
            and other["status"] == "queued"
            and (other["id"], other["attempt"]) not in self._started
            for other in rows
        )

    def _start(self, number: int) -> Row | None:
        row = pick(self.queue(), number)
        if row is None:
            return None
        self._started[row["id"], row["attempt"]] = "done"
        if row["action"] == "close" and row["ticket"] is None:
            self._drop_unsent(row)
        return row

    def _drop_unsent(self, close: Row) -> None:
        unsent = self.world.rows(
            "select q.*, a.name as follower from public.trade_execution_queue q join public.trading_accounts a"
            " on a.id = q.account_id where step_id = %s and finalized_at is null and q.status = 'queued'",
            close["after_id"],
        )
        for row in unsent:
            if (row["id"], row["attempt"]) not in self._started:
                self._started[row["id"], row["attempt"]] = "done"
                self._report(row, "cancelled", reason="already_closed")

    # -- what it knows of pairs --------------------------------------------------------------------------------

    def _pair(self, link: int, follower: str) -> Pair:
        (row,) = self.world.rows(
            "select a.name, l.master_ticket from public.position_links l join public.trading_accounts a"
            " on a.id = l.master_account_id where l.id = %s",
            link,
        )
        return Pair(row["name"], follower, self.masters.root[row["master_ticket"]])

    def _opens(self, row: Row) -> list[Pair]:
        """The pairs for which it opens something."""
        if row["parts"]:
            return [self._pair(int(p["link_id"]), row["follower"]) for p in row["parts"] if Decimal(p["lots"]) > 0]
        return [self._pair(row["link_id"], row["follower"])] if row["action"] in OPENING else []

    def _failed(self, row: Row) -> None:
        self.doubts.pairs.update(self._opens(row))
        self._level_refused(row)

    def _level_refused(self, row: Row) -> None:
        if row["link_id"] is not None and row["action"] in ("modify", "amend", *OPENING):
            self.doubts.levels.add(self._pair(row["link_id"], row["follower"]))

    # -- what a broker does ------------------------------------------------------------------------------------

    def _fill_once(self, row: Row) -> None:
        assert row["id"] not in self.filled, f"execution {row['id']} is filled twice"
        self.filled.add(row["id"])

    def _do(self, row: Row, share: Decimal | None = None) -> tuple[str, list[Row]] | None:
        """The broker carries it out: lots dealt, and what it touched. None: there is nothing to do it to."""
        return self._do_net(row, share) if row["follower"] == "N" else self._do_hedging(row, share)

    @staticmethod
    def _part(lots: Decimal, share: Decimal | None) -> Decimal:
        return lots if share is None else max(CENT, (lots * share).quantize(CENT))

    def _do_net(self, row: Row, share: Decimal | None) -> tuple[str, list[Row]]:
        if row["action"] == "modify":
            self.net_sl = row["sl"] if self.net else None
            return "0", self.net_state()
        lots = self._part(row["lots"], share)
        self._fill_once(row)
        before = self.net
        self.net += lots if (row["side"] == "buy") == (row["action"] == "open") else -lots
        if row["sl"] is not None or before * self.net <= 0:
            self.net_sl = row["sl"]
        return str(lots), self.net_state()

    def _do_hedging(self, row: Row, share: Decimal | None) -> tuple[str, list[Row]] | None:
        if row["action"] in OPENING:
            kind = "order" if row["action"] == "place" else "position"
            lots = self._part(row["lots"], share if kind == "position" else None)
            ticket = str(next(self._tickets))
            self._fill_once(row)
            self.hedging[ticket] = Holding(kind, row["side"], lots, row["sl"], row["id"], self._pair(row["link_id"], "H"))
            return str(lots), [self.state(ticket)]
        touched = [row["ticket"]] if row["ticket"] is not None else self._left_by(row["after_id"])
        dealt = [self._change(row, self.hedging[ticket], share) for ticket in touched]
        if None in dealt:
            return None
        return str(sum(lots for lots in dealt if lots is not None)), [self.state(ticket) for ticket in touched]

    def _left_by(self, step: int) -> list[str]:
        ids = {row["id"] for row in self.world.rows("select id from public.trade_execution_queue where step_id = %s", step)}
        return [ticket for ticket, x in self.hedging.items() if x.tag in ids and x.lots > 0]

    def _change(self, row: Row, x: Holding, share: Decimal | None) -> Decimal | None:
        """Lots dealt of this holding; None: it is gone, or no order any more."""
        if x.lots == 0 or (row["action"] in ("cancel", "amend") and x.kind == "position"):
            return None
        if row["action"] in ("modify", "amend"):
            x.sl = row["sl"]
            return Decimal(0)
        # an agent takes off no more than leaves the target
        wanted = max(Decimal(0), min(row["lots"], x.lots - row["target_lots"])) if row["action"] == "reduce" else x.lots
        dealt = min(wanted, self._part(wanted, share)) if row["action"] == "reduce" else wanted
        x.lots -= dealt
        return dealt

    def state(self, ticket: str) -> Row:
        x = self.hedging[ticket]
        more = {"kind": x.kind, "sl": None if x.sl is None else str(x.sl), "tag": None if x.tag is None else str(x.tag)}
        order = {"order_type": "limit"} if x.kind == "order" else {}
        return self.world.position(str(x.lots), x.side, ticket) | more | order

    def net_state(self) -> list[Row]:
        levels = {"sl": None if self.net_sl is None else str(self.net_sl)}
        return [self.world.position(str(abs(self.net)), "sell" if self.net < 0 else "buy", "net-1") | levels]

    # -- reports -----------------------------------------------------------------------------------------------

    def _report(self, row: Row, outcome: str, positions: Sequence[Row] = (), **more: Any) -> None:
        seq = next(self.world._seq)
        body = {"account_id": str(row["account_id"]), "session": 1, "seq": seq, "execution_id": str(row["id"])}
        body |= {"attempt": row["attempt"], "outcome": outcome, "positions": list(positions)} | more
        if self._delaying:
            self._delaying = False
            self._late.append((row["follower"], body))
        else:
            self._send(row["follower"], body)

    def _send(self, follower: str, body: Row) -> None:
        results = self.world.as_agent(follower, "report_executions", {"reports": [body]})["results"]
        assert results[0]["status"] in ("accepted", "duplicate"), results
        self._told.append((follower, body))

    def late(self, a: int, b: int, c: int) -> None:
        """The next report comes late."""
        self._delaying = True

    def late_in(self, a: int, b: int, c: int) -> None:
        if self._late:
            self._send(*self._late.pop(a % len(self._late)))

    def report_again(self, a: int, b: int, c: int) -> None:
        if again := pick(self._told, a):
            self._send(*again)

    # -- outcomes ----------------------------------------------------------------------------------------------

    def done(self, a: int, b: int, c: int) -> None:
        if row := self._start(a):
            self._finish(row, self._do(row))

    def partial(self, a: int, b: int, c: int) -> None:
        if row := self._start(a):
            self.doubts.pairs.update(self._opens(row))
            self._finish(row, self._do(row, Decimal("0.6")))

    def _finish(self, row: Row, done: tuple[str, list[Row]] | None, **more: Any) -> None:
        if done is not None:
            self._report(row, "completed", done[1], filled_lots=done[0], price="1.1", **more)
        elif row["action"] in ("close", "reduce"):
            self._report(row, "completed", filled_lots="0", **more)
        else:
            self._level_refused(row)
            self._report(row, "rejected", reason="position_not_found", **more)

    def refuse(self, a: int, b: int, c: int) -> None:
        if row := self._start(a):
            self._failed(row)
            self._report(row, "rejected", reason="no_money", retryable=False)
            self._refused.append(row)

    def refuse_for_now(self, a: int, b: int, c: int) -> None:
        if row := self._start(a):
            self._level_refused(row)
            self._report(row, "rejected", reason="requote", retryable=True)

    def expire(self, a: int, b: int, c: int) -> None:
        if row := self._start(a):
            self._failed(row)
            self._report(row, "expired", reason="too_late")
            self._refused.append(row)

    def after_all(self, a: int, b: int, c: int) -> None:
        """What was reported as refused or expired was carried out after all."""
        final = [row for row in self._refused if row["action"] in OPENING and row["id"] not in self.filled and self._is_over(row)]
        if row := pick(final, a):
            self._finish(row, self._do(row), adopted=True)

    def _is_over(self, row: Row) -> bool:
        status = self.world.one("select status from public.trade_execution_queue where id = %s", row["id"])
        return status in ("rejected", "expired")

    def lose(self, a: int, b: int, c: int) -> None:
        """Nobody knows what became of it, until it is found."""
        if row := self._start(a):
            happened = b % 2 == 1
            done = self._do(row) if happened else None
            self._started[row["id"], row["attempt"]] = "lost"
            self._report(row, "unknown", reason="unknown")
            self._lost.append((row, done, happened))

    def found(self, a: int, b: int, c: int) -> None:
        if not self._lost:
            return
        row, done, happened = self._lost.pop(a % len(self._lost))
        self._started[row["id"], row["attempt"]] = "done"
        if done is not None:
            now = [self.state(p["ticket"]) for p in done[1]] if row["follower"] == "H" else self.net_state()
            done = done[0], now
        if happened:
            self._finish(row, done, adopted=True)
        else:
            self._failed(row)
            self._report(row, "expired", reason="not_found_after_unknown")

    def time(self, a: int, b: int, c: int) -> None:
        """Every pause before another attempt is over."""
        execute = self.world.db.execute
        execute("update public.trade_execution_queue set next_attempt_at = '-infinity' where status = 'retrying'")
        execute("update public.position_links set replan_at = '-infinity' where replan_at is not null and state = 'live'")
        execute("update private.net_ledgers set replan_at = '-infinity' where replan_at is not null")
        execute("select private.maintain_executions()")

    # -- followers' users and markets --------------------------------------------------------------------------

    def _copies(self, kind: str) -> list[str]:
        return [ticket for ticket, x in self.hedging.items() if x.lots > 0 and x.kind == kind and x.pair]

    def fill_order(self, ticket: str) -> None:
        self.hedging[ticket].kind = "position"
        self.world.send("H", self.world.event("opened", self.state(ticket)))

    def order_fills(self, a: int, b: int, c: int) -> None:
        if ticket := pick(self._copies("order"), a):
            self.fill_order(ticket)

    def _by_hand(self, ticket: str, lots: Decimal) -> None:
        x = self.hedging[ticket]
        x.lots = lots
        assert x.pair is not None
        self.doubts.pairs.add(x.pair)
        self.world.send("H", self.world.event("reduced" if lots else "closed", self.state(ticket)))

    def user_trims(self, a: int, b: int, c: int) -> None:
        ticket = pick(self._copies("position"), a)
        if ticket and self.hedging[ticket].lots > Decimal("0.05"):
            self._by_hand(ticket, self.hedging[ticket].lots - Decimal("0.05"))

    def user_closes(self, a: int, b: int, c: int) -> None:
        if ticket := pick(self._copies("position"), a):
            self._by_hand(ticket, Decimal(0))

    def user_opens(self, a: int, b: int, c: int) -> None:
        ticket = str(next(self._tickets))
        self.hedging[ticket] = Holding("position", "buy", OWN, None, None, None)
        self.world.send("H", self.world.event("opened", self.state(ticket)))

    def user_deals(self, a: int, b: int, c: int) -> None:
        """On N, where one deal moves everybody's position."""
        lots = Decimal(a % 7 - 3) / 10
        self.net += lots
        self.own_on_net += abs(lots)
        if self.net == 0:
            self.net_sl = None
        self.world.send("N", self.world.event("modified" if self.net else "closed", self.net_state()[0]))
