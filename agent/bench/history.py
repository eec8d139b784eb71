"""`bench history`: cost of an event in Postgres with years of closed trades, compared with the same farm without them.

Two databases on one server contain the same farm: a master and its followers. One is then filled with closed history of
these accounts (events, executions, ended links, closed positions, outcomes). Rounds alternate between the two, so that
other load on the machine affects both alike, and only their ratio is a result. A round is an open and its reports, then
a close and its reports, through the functions that agents call.
"""

import json
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import psycopg

from agent import paths
from agent.bench.contest.copies import position_report
from agent.bench.contest.product import SETTINGS
from agent.bench.histogram import describe
from agent.bench.lanes import make_lanes
from agent.bench.machine import machine_facts
from agent.failure import Failure
from agent.stack.database import Database
from agent.stack.postgres import PostgresServer
from agent.stack.schema import project_root
from agent.stack.server_user import remove_folder

Connection = psycopg.Connection[tuple[Any, ...]]
#: rows per table, out of every thousand rows of history
SHARES: Final = {"executions": 350, "links": 250, "positions": 150, "events": 150, "outcomes": 100}
FILL: Final = {
    "links": """
        insert into public.position_links (user_id, copier_id, master_account_id, follower_account_id, master_ticket,
          master_side, symbol, side, state, reason, seen_master_lots, base_master_lots, base_lots, event_id,
          created_at, ended_at)
        select c.user_id, c.id, c.master_account_id, c.follower_account_id, 'old' || n, 'buy', 'EURUSD', 'buy',
          'ended', 'closed', 1, 1, 1, n, now() - n * interval '10 s', now() - n * interval '10 s' + interval '5 s'
        from generate_series(1, %(rows)s) n join pg_temp.farm c on c.number = n %% %(followers)s""",
    "executions": """
        insert into public.trade_execution_queue (step_id, link_id, lane, copier_id, user_id, account_id,
          master_account_id, event_id, action, priority, symbol, side, lots, status, filled_lots, fill_price,
          send_before, detected_at, queued_at, sent_at, done_at, finalized_at, updated_at)
        select n, n, n::text, c.id, c.user_id, c.follower_account_id, c.master_account_id, n, case when n %% 2 = 0
          then 'open' else 'close' end, 40, 'EURUSD', 'buy', 1, 'completed', 1, 1.1, t.at, t.at, t.at, t.at, t.at,
          t.at, t.at
        from generate_series(1, %(rows)s) n join pg_temp.farm c on c.number = n %% %(followers)s
        cross join lateral (select now() - n * interval '10 s' as at) t""",
    "positions": """
        insert into public.positions (account_id, ticket, user_id, kind, symbol, side, lots, price, session, seq,
          unseen_at, detected_at, first_seen_at, changed_at, closed_at, close_reason)
        select case when n %% 2 = 0 then c.master_account_id else c.follower_account_id end, 'old' || n, c.user_id,
          'position', 'EURUSD', 'buy', 0, 1.1, 1, 0, t.at, t.at, t.at, t.at, t.at, 'client'
        from generate_series(1, %(rows)s) n join pg_temp.farm c on c.number = n %% %(followers)s
        cross join lateral (select now() - n * interval '10 s' as at) t""",
    "events": """
        insert into public.trade_events (account_id, user_id, session, seq, event_key, type, status, ticket, symbol,
          side, lots, payload, detected_at, received_at, locked_at)
        select c.master_account_id, c.user_id, 1, -n, '1:-' || n, 'opened', 'accepted', 'old' || n, 'EURUSD', 'buy',
          1, '{}', t.at, t.at, t.at
        from generate_series(1, %(rows)s) n join pg_temp.farm c on c.number = n %% %(followers)s
        cross join lateral (select date_trunc('day', now(), 'UTC') - (n %% 80000) * interval '1 s' as at) t""",
    "outcomes": """
        insert into public.copy_outcomes (event_id, copier_id, user_id, link_id, reason, decided_at)
        select -n, c.id, c.user_id, n, 'no_change', now() - n * interval '10 s'
        from generate_series(1, %(rows)s) n join pg_temp.farm c on c.number = n %% %(followers)s""",
}
FARM: Final = """
    create temporary table farm as
    select c.id, c.user_id, c.master_account_id, c.follower_account_id, row_number() over (order by c.id) - 1 as number
    from public.copiers c"""


def history_figures(rows: int, rounds: int, followers: int, progress: Callable[[str], None]) -> dict[str, object]:
    """Cost of an event with and without `rows` of history, in ms, and the ratio of the p50s. Raises `Failure`."""
    folder = paths.temporary_folder("bench")
    server = PostgresServer(folder, durable=False)
    farms: dict[str, Farm] = {}
    try:
        server.start()
        progress("a database without history")
        farms["without"] = Farm(Database.prepared(server, "young", project_root()), followers)
        progress(f"a database with {rows} rows of history")
        farms["with"] = Farm(Database.prepared(server, "old", project_root()), followers)
        farms["with"].fill(rows)
        progress(f"{rounds} rounds, {followers} followers")
        for number in range(3 + rounds):
            for farm in farms.values() if number % 2 else reversed(farms.values()):
                farm.play(counts=number >= 3)
        figures: dict[str, object] = {name: describe(farm.times_ms) for name, farm in farms.items()}
        p50 = {name: float(str(describe(farm.times_ms)["p50"])) for name, farm in farms.items()}
        return {
            "benchmark": "history", "rows": rows, "rounds": rounds, "followers": followers, **figures,
            "p50_ratio": round(p50["with"] / p50["without"], 3), "machine": machine_facts(farms["with"].version()),
        }  # fmt: skip
    finally:
        for farm in farms.values():
            farm.close()
        server.stop()
        remove_folder(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


class Farm:
    """One database with a master and its followers; `times_ms` contains both calls of every half round."""

    def __init__(self, database: Database, followers: int) -> None:
        self._followers = followers
        self._owner = database.connect()
        [self._place] = make_lanes(self._owner, "history", 1, followers, apart=False)
        self._agent = database.connect()
        self._numbers = 0
        self.times_ms: list[float] = []

    def version(self) -> str:
        return str(self._agent.info.parameter_status("server_version"))

    def close(self) -> None:
        self._agent.close()
        self._owner.close()

    def fill(self, rows: int) -> None:
        """Insert closed history of this farm's accounts, with triggers and foreign keys disabled."""
        self._owner.execute("set session_replication_role = replica")
        self._owner.execute(FARM)
        for table, share in SHARES.items():
            self._owner.execute(FILL[table].encode(), {"rows": rows * share // 1000, "followers": self._followers})
        self._owner.execute("set session_replication_role = origin")
        self._owner.execute("vacuum (analyze)")

    def play(self, *, counts: bool) -> None:
        ticket = self._number("m")
        for opens in (True, False):
            began = time.perf_counter()
            answer = self._call("queue_trade_copy", self._event(ticket, opens=opens))
            executions = answer["executions"]
            results = self._call("report_executions", {"reports": [self._report(each) for each in executions]})[
                "results"
            ]
            took = (time.perf_counter() - began) * 1000
            if len(executions) != self._followers or any(result["status"] != "accepted" for result in results):
                raise Failure(
                    f"{self._followers} executions were expected, {len(executions)} came",
                    "discard this result and report it",
                    code="TC660",
                )
            if counts:
                self.times_ms.append(took)

    def _number(self, letter: str) -> str:
        self._numbers += 1
        return f"{letter}{self._numbers}"

    def _event(self, ticket: str, *, opens: bool) -> dict[str, object]:
        now = datetime.now(UTC).isoformat()
        event = {
            "session": 1, "seq": int(self._number("")), "type": "opened" if opens else "closed", "evidence": "deal",
            "detected_at": now, "unchanged_at": now, "position": position_report(ticket, "0.10" if opens else "0"),
        }  # fmt: skip
        return {"account_id": self._place["master"], "epoch": 1, "events": [event]}

    def _report(self, execution: dict[str, Any]) -> dict[str, object]:
        now = datetime.now(UTC).isoformat()
        opens = execution["action"] == "open"
        position = position_report(
            self._number("f") if opens else execution["ticket"],
            execution["lots"] if opens else "0",
            tag=execution["id"],
        )
        return {
            "account_id": execution["account_id"], "session": 1, "seq": int(self._number("")),
            "execution_id": execution["id"],
            "attempt": execution["attempt"], "outcome": "completed", "filled_lots": execution["lots"], "price": "1.1",
            "positions": [position], "received_at": now, "sent_at": now, "done_at": now,
        }  # fmt: skip

    def _call(self, function: str, request: dict[str, object]) -> dict[str, Any]:
        claims = json.dumps({"sub": self._place["agent"], "role": "authenticated"})
        with self._agent.transaction():
            self._agent.execute(SETTINGS, (claims,))
            row = self._agent.execute(
                f"select public.{function}(%s::jsonb)".encode(), (json.dumps(request),)
            ).fetchone()
        assert row is not None
        answer: dict[str, Any] = row[0]
        return answer
