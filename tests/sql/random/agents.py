"""The agents of the followers: lanes and `after_id` as the real one keeps them, and outcomes at random.

Their reports come late, twice or out of order, and some tell only later what became of an order.
"""

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from brokers import OPENING, Brokers, Done, Row
from masters import Masters
from quiet_world import MASTERS, Discrepancies, Pair, QuietWorld, pick

QUEUE = """
    select q.*, a.name as follower from public.trade_execution_queue q
    join public.trading_accounts a on a.id = q.account_id where q.finalized_at is null order by q.id
"""
#: doing them twice does no more than doing them once: they are repeated, not looked for
REPEATABLE = ("close", "modify", "amend", "cancel")


class Agents:
    def __init__(self, world: QuietWorld, masters: Masters, brokers: Brokers, doubts: Discrepancies) -> None:
        self.world = world
        self.masters = masters
        self.brokers = brokers
        self.doubts = doubts
        #: (execution, attempt) → done, lost; nobody knows: the ones not in here
        self.started: dict[tuple[int, int], str] = {}
        self.lost: list[tuple[Row, Done, bool]] = []
        self.delaying = False
        self.reports: list[tuple[str, Row]] = []
        self._told: list[tuple[str, Row]] = []
        self._refused: list[Row] = []
        self.refusals: Counter[Pair] = Counter()

    # -- what may start ----------------------------------------------------------------------------------------

    def queue(self) -> list[Row]:
        """The first unfinished execution of every lane that waits for no step."""
        rows = self.world.rows(QUEUE)
        self._check_steps(rows)
        if self.masters.frozen or self.masters.flattening:
            self._check_latches(rows)
        ready: list[Row] = []
        busy: set[str] = set()
        for row in rows:
            stage = self.started.get((row["id"], row["attempt"]))
            if stage == "done" or row["lane"] in busy:
                continue
            busy.add(row["lane"])
            if stage != "lost" and row["status"] == "queued" and not self._waits(row, rows):
                ready.append(row)
        return ready

    def _unsent(self, row: Row) -> bool:
        return row["status"] == "queued" and (row["id"], row["attempt"]) not in self.started

    def _waits(self, row: Row, rows: Sequence[Row]) -> bool:
        overtakes = row["action"] == "close" and row["ticket"] is None
        return not overtakes and any(
            other["step_id"] == row["after_id"] and other["id"] < row["id"] and self._unsent(other) for other in rows
        )

    @staticmethod
    def _check_steps(rows: Sequence[Row]) -> None:
        """One step in flight per link, and closes; an order that names neither ticket nor step cannot be carried
        out."""
        steps: dict[int, set[int]] = {}
        for row in rows:
            if (
                row["action"] in (*OPENING, "reduce", "modify", "amend")
                and row["parts"] is None
                and row["follower"] != "N"
            ):
                steps.setdefault(row["link_id"], set()).add(row["step_id"])
            if row["action"] not in OPENING:
                assert row["ticket"] is not None or row["after_id"] is not None, f"{row['action']} of nothing"
        assert all(len(of_link) == 1 for of_link in steps.values()), f"several steps at once: {steps}"

    def _check_latches(self, rows: Sequence[Row]) -> None:
        """For a copier that is off nothing new is queued, and nothing is opened on an account that is being
        flattened."""
        for row in rows:
            if row["id"] > self.masters.flattening.get(row["follower"], row["id"]):
                assert not self._opens(row), f"{row['action']} on {row['follower']}, which is being flattened"
            if row["follower"] in self.masters.flattening:
                continue  # whatever its copiers' modes: it shall hold nothing
            links: list[int | None] = [int(p["link_id"]) for p in row["parts"] or () if p["link_id"]]
            of_surplus = any(p["link_id"] is None for p in row["parts"] or ())
            if not links and not of_surplus and row["action"] != "modify":
                links = [row["link_id"]]
            for pair in [self.pair(link, row["follower"]) for link in links if link is not None]:
                assert row["id"] <= self.masters.frozen.get(pair[:2], row["id"]), (
                    f"{row['action']} for {pair}, which is off"
                )

    def _start(self, number: int) -> Row | None:
        row = pick(self.queue(), number)
        if row is None:
            return None
        self.started[row["id"], row["attempt"]] = "done"
        if row["action"] in OPENING and row["follower"] != "N":
            self._check_turn(row)
        if row["action"] == "close" and row["ticket"] is None:
            self._drop_unsent(row)
        if row["cancel_requested_at"] is not None:
            self._failed(row)
            self._report(row, "cancelled", reason="cancel_requested")
            return None
        return row

    def _check_turn(self, row: Row) -> None:
        """A flip opens only after what it ends was tried to be closed: both sides are never held by order."""
        pair = self.pair(row["link_id"], row["follower"])
        opposite = {
            k for k, x in self.brokers.holdings(row["follower"]).items() if x.pair == pair and x.side != row["side"]
        }
        before = [e for e in self.world.rows(QUEUE) if e["id"] < row["id"] and self._unsent(e)]
        ahead = [e["id"] for e in before if ("position", e["ticket"]) in opposite and e["action"] == "close"]
        assert not ahead, f"execution {row['id']} opens before {ahead} close the other side"

    def _drop_unsent(self, close: Row) -> None:
        for row in self.world.rows(QUEUE):
            if row["step_id"] == close["after_id"] and self._unsent(row):
                self.started[row["id"], row["attempt"]] = "done"
                self._report(row, "cancelled", reason="already_closed")

    # -- what it knows of pairs --------------------------------------------------------------------------------

    def pair(self, link: int, follower: str) -> Pair:
        (row,) = self.world.rows(
            "select a.name, l.master_kind, l.master_ticket from public.position_links l join public.trading_accounts a"
            " on a.id = l.master_account_id where l.id = %s",
            link,
        )
        roots = self.masters.root if row["name"] in MASTERS else self.brokers.root
        return Pair(row["name"], follower, roots[row["master_kind"], row["master_ticket"]])

    def _opens(self, row: Row) -> list[Pair]:
        """The pairs for which it opens something."""
        if row["parts"]:
            return [self.pair(int(p["link_id"]), row["follower"]) for p in row["parts"] if Decimal(p["lots"]) > 0]
        return [self.pair(row["link_id"], row["follower"])] if row["action"] in OPENING else []

    def _failed(self, row: Row) -> None:
        pairs = self._opens(row)
        self.doubts.pairs.update(pairs)
        self.doubts.pairs.update(pair._replace(root=self.masters.joined.get(pair.root, pair.root)) for pair in pairs)

    def _level_refused(self, row: Row) -> None:
        """A change of levels is asked three times."""
        if row["action"] in ("modify", "amend"):
            pair = self.pair(row["link_id"], row["follower"])
            whose = (
                Pair("", "N", "")
                if row["follower"] == "N"
                else pair._replace(root=self.masters.joined.get(pair.root, pair.root))
            )
            self.refusals[whose] += 1
            if self.refusals[whose] >= 3:
                self.doubts.levels.add(whose)

    def _do(self, row: Row, share: Decimal | None = None) -> Done:
        return self.brokers.do(
            row, None if row["link_id"] is None else self.pair(row["link_id"], row["follower"]), share
        )

    # -- reports -----------------------------------------------------------------------------------------------

    def _report(self, row: Row, outcome: str, positions: Sequence[Row] = (), **more: object) -> None:
        follower = row["follower"]
        body: Row = {
            "account_id": str(row["account_id"]),
            "session": self.world.sessions[follower],
            "seq": next(self.world._seq),
        }
        body |= {
            "execution_id": str(row["id"]),
            "attempt": row["attempt"],
            "outcome": outcome,
            "positions": list(positions),
        } | more
        if self.delaying:
            self.delaying = False
            self.reports.append((follower, body))
        else:
            self._send(follower, body)

    def _send(self, follower: str, body: Row) -> None:
        results = self.world.as_agent(follower, "report_executions", {"reports": [body]})["results"]
        assert results[0]["status"] in ("accepted", "duplicate"), results
        self._told.append((follower, body))

    def late(self, a: int, b: int, c: int) -> None:
        """The next report comes late."""
        self.delaying = True

    def late_in(self, a: int, b: int, c: int) -> None:
        if self.reports:
            self._send(*self.reports.pop(a % len(self.reports)))

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
            if (
                row["action"] == "reduce" and row["link_id"] is not None
            ):  # the rest may be needless by now, and what is gone is gone
                self.doubts.pairs.add(self.pair(row["link_id"], row["follower"]))
            self._finish(row, self._do(row, Decimal("0.6")))

    def _finish(self, row: Row, done: Done, *, adopted: bool = False) -> None:
        if done is not None:
            self._report(row, "completed", done[1], filled_lots=done[0], price="1.1", adopted=adopted)
        elif row["action"] in ("close", "reduce"):
            shown = self.brokers.net_state() if row["follower"] == "N" else ()
            self._report(row, "completed", shown, filled_lots="0", adopted=adopted)
        else:
            self._failed(row)  # its symbol has another name now
            self._level_refused(row)
            self._report(row, "rejected", reason="position_not_found", adopted=adopted)

    def refuse(self, a: int, b: int, c: int) -> None:
        if row := self._start(a):
            self._failed(row)
            self._level_refused(row)
            self._report(row, "rejected", reason=("trade_disabled", "no_money")[b % 2], retryable=False)
            self._refused.append(row)

    def refuse_for_now(self, a: int, b: int, c: int) -> None:
        if row := self._start(a):
            if row["attempt"] >= 3:
                self._level_refused(row)
            self._report(row, "rejected", reason="requote", retryable=True)

    def expire(self, a: int, b: int, c: int) -> None:
        if row := self._start(a):
            self._failed(row)
            self._report(row, "expired", reason="too_late")
            self._refused.append(row)

    def after_all(self, a: int, b: int, c: int) -> None:
        """What was reported as refused or expired was carried out after all."""
        final = [
            row
            for row in self._refused
            if row["action"] in OPENING and row["id"] not in self.brokers.filled and self._is_over(row)
        ]
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
            self.started[row["id"], row["attempt"]] = "lost"
            self._report(row, "unknown", reason="unknown")
            self.lost.append((row, done, happened))

    def found(self, a: int, b: int, c: int) -> None:
        if not self.lost:
            return
        row, done, happened = self.lost.pop(a % len(self.lost))
        self.started[row["id"], row["attempt"]] = "done"
        if done is not None:
            net = row["follower"] == "N"
            done = (
                done[0],
                self.brokers.net_state()
                if net
                else [self.brokers.state(self.brokers.newest((p["kind"], p["ticket"]))) for p in done[1]],
            )
        if happened:
            self._finish(row, done, adopted=True)
        else:
            self._failed(row)
            self._report(row, "expired", reason="not_found_after_unknown")

    def taken_over(self, follower: str) -> None:
        """Another agent works the account: what was offered before it came may have been sent, so it is looked for."""
        for row in self.world.rows(QUEUE):
            if row["follower"] == follower and self._unsent(row) and row["action"] not in REPEATABLE:
                self.started[row["id"], row["attempt"]] = "lost"
                self.lost.append((row, None, False))
        self.world.look(follower, self.brokers.book(follower))

    def time(self, a: int, b: int, c: int) -> None:
        """Every pause before another attempt is over."""
        execute = self.world.db.execute
        execute("update public.trade_execution_queue set next_attempt_at = '-infinity' where status = 'retrying'")
        execute(
            "update public.position_links set replan_at = '-infinity' where replan_at is not null and state = 'live'"
        )
        execute("update private.net_ledgers set replan_at = '-infinity' where replan_at is not null")
        execute("select private.maintain_executions()")
