"""A small farm for planner tests: accounts, copiers and agents, spoken to through the very functions that agents
call."""

import itertools
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

EURUSD = {
    "contract_size": "100000",
    "tick_size": "0.00001",
    "digits": 5,
    "profit_currency": "USD",
    "margin_currency": "EUR",
}

#: role and claims end with a transaction, but not with a savepoint, which a call is in a test that is rolled back
END_OF_REQUEST = "select set_config('role', 'none', true), set_config('request.jwt.claims', '', true)"


class World:
    """One user, a VPS per name, accounts by name. `book` is what each account's broker would hold, kept by the test."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.db = connection
        self.db.row_factory = dict_row
        self.user = self._user("owner@example.test")
        self.vps: dict[str, str] = {}
        self.agents: dict[str, str] = {}
        self.accounts: dict[str, str] = {}
        self.homes: dict[str, str] = {}
        self.copiers: dict[str, str] = {}
        self._seq = itertools.count(1)
        self._tickets = itertools.count(1001)

    def one(self, statement: str, *args: Any) -> Any:
        row = self.db.execute(statement, args).fetchone()
        return None if row is None else next(iter(row.values()))

    def rows(self, statement: str, *args: Any) -> list[dict[str, Any]]:
        return self.db.execute(statement, args).fetchall()

    def _user(self, email: str) -> str:
        return str(self.one("insert into auth.users (id, email) values (%s, %s) returning id", uuid.uuid4(), email))

    def set_weekend(self, begins: timedelta, ends: timedelta) -> None:
        """The weekend lasts from now + `begins` to now + `ends`, in whole minutes."""
        start, end = (datetime.now(UTC) + by for by in (begins, ends))
        value = {
            "weekday": start.isoweekday(), "time": f"{start:%H:%M}", "until_weekday": end.isoweekday(),
            "until_time": f"{end:%H:%M}", "time_zone": "UTC",
        }  # fmt: skip
        self.db.execute("update public.system_config set value = %s where key = 'weekend'", (Jsonb(value),))

    def add_vps(self, name: str) -> None:
        self.agents[name] = self._user(f"{name}@agents.test")
        self.vps[name] = str(
            self.one(
                "insert into public.vps_instances (name, user_id, platforms, capacity, status, lease_expires_at,"
                " last_heartbeat_at)"
                " values (%s, %s, '{paper}', 500, 'online', now() + interval '1 hour', now()) returning id",
                name,
                self.agents[name],
            )
        )

    def add_account(
        self,
        name: str,
        vps: str = "a",
        mode: str = "hedging",
        currency: str = "USD",
        balance: str = "10000",
        **spec: Any,
    ) -> None:
        if vps not in self.vps:
            self.add_vps(vps)
        account = str(
            self.one(
                "insert into public.trading_accounts (user_id, platform, server, login, name, mode, currency,"
                " status, session, snapshot_session,"
                " balance, equity, margin, free_margin, funds_at, seen_at)"
                " values (%s, 'paper', 'x', %s, %s, %s, %s, 'connected', 1, 1, %s, %s, 0, %s, now(), now())"
                " returning id",
                self.user,
                name,
                name,
                mode,
                currency,
                balance,
                balance,
                balance,
            )
        )
        self.accounts[name] = account
        self.homes[name] = vps
        self.db.execute(
            "insert into public.account_vps_assignments (account_id, vps_id, epoch, begins_at, assigned_at)"
            " values (%s, %s, 1, now(), now())",
            (account, self.vps[vps]),
        )
        self.add_symbol(name, "EURUSD", **spec)

    def add_symbol(self, account: str, symbol: str, **spec: Any) -> None:
        s = {"lots_min": "0.01", "lots_max": "50", "lots_step": "0.01", "trade_mode": "full"} | EURUSD | spec
        self.db.execute(
            "insert into public.account_symbols (account_id, name, contract_size, tick_size, digits,"
            " profit_currency, margin_currency,"
            " lots_min, lots_max, lots_step, trade_mode, bid, ask, quoted_at)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 1.1, 1.1001, now())",
            (self.accounts[account], symbol, s["contract_size"], s["tick_size"], s["digits"], s["profit_currency"],
                s["margin_currency"],
             s["lots_min"], s["lots_max"], s["lots_step"], s["trade_mode"]),
        )  # fmt: skip

    def copy(self, master: str, follower: str, **settings: Any) -> str:
        answer = self.as_user(
            "save_copier",
            {"master_account_id": self.accounts[master], "follower_account_id": self.accounts[follower]} | settings,
        )
        self.copiers[f"{master}>{follower}"] = answer["copier_id"]
        return str(answer["copier_id"])

    # -- calls -------------------------------------------------------------------------------------------------

    def call(self, who: str, function: str, argument: Any) -> Any:
        if function == "vps_heartbeat":
            argument = {"protocol_version": 2} | argument
        with self.db.transaction():
            self.db.execute(
                "select set_config('request.jwt.claims', %s, true)", (f'{{"sub": "{who}", "role": "authenticated"}}',)
            )
            self.db.execute("set local role authenticated")
            answer = self.one(f"select public.{function}(%s)", Jsonb(argument))
            self.db.execute(END_OF_REQUEST)
            return answer

    def as_user(self, function: str, argument: Any) -> Any:
        return self.call(self.user, function, argument)

    def as_agent(self, account: str, function: str, argument: Any) -> Any:
        return self.call(self.agents[self.homes[account]], function, argument)

    def ticket(self) -> str:
        return str(next(self._tickets))

    def event(self, kind: str, position: dict[str, Any] | None = None, *, age_s: float = 0.0, session: int = 1,
        seq: int | None = None,
              **more: Any) -> dict[str, Any]:  # fmt: skip
        now = datetime.now(UTC)
        body: dict[str, Any] = {
            "session": session, "seq": seq or next(self._seq), "type": kind,
            "detected_at": now.isoformat(), "unchanged_at": (now - timedelta(seconds=age_s)).isoformat(),
        }  # fmt: skip
        if position is not None:
            body["position"] = position
        if kind in ("closed", "cancelled"):
            body["evidence"] = "deal"
        return body | more

    def send(self, account: str, *events: dict[str, Any], epoch: int = 1) -> Any:
        return self.as_agent(
            account, "queue_trade_copy", {"account_id": self.accounts[account], "epoch": epoch, "events": list(events)}
        )

    def position(self, lots: str = "1.00", side: str = "buy", ticket: str | None = None, **more: Any) -> dict[str, Any]:
        return {"ticket": ticket or self.ticket(), "kind": "position", "symbol": "EURUSD", "side": side,
            "lots": lots, "price": "1.10000",
                "sl": None, "tp": None} | more  # fmt: skip

    def opened(self, account: str, lots: str = "1.00", side: str = "buy", **more: Any) -> dict[str, Any]:
        """The master opens; returns its position."""
        position = self.position(lots, side, **more)
        self.send(account, self.event("opened", position))
        return position

    def open_executions(self, account: str | None = None) -> list[dict[str, Any]]:
        return self.rows(
            "select * from public.trade_execution_queue where finalized_at is null and (%s::uuid is null or"
            " account_id = %s) order by id",
            self.accounts.get(account or ""), self.accounts.get(account or ""),
        )  # fmt: skip

    def executions(self, account: str) -> list[dict[str, Any]]:
        return self.rows(
            "select * from public.trade_execution_queue where account_id = %s order by id", self.accounts[account]
        )

    def report(
        self,
        execution: dict[str, Any],
        outcome: str = "completed",
        positions: Sequence[dict[str, Any]] = (),
        **more: Any,
    ) -> Any:
        account = next(n for n, i in self.accounts.items() if i == str(execution["account_id"]))
        now = datetime.now(UTC).isoformat()
        body = {
            "account_id": self.accounts[account], "session": 1, "seq": next(self._seq),
            "execution_id": str(execution["id"]),
            "attempt": execution["attempt"], "outcome": outcome, "positions": list(positions), "received_at": now,
                "sent_at": now, "done_at": now,
        } | more  # fmt: skip
        return self.as_agent(account, "report_executions", {"reports": [body]})

    def fill(self, execution: dict[str, Any], lots: str | None = None, ticket: str | None = None) -> str:
        """The broker does what the execution says; returns the ticket."""
        action = execution["action"]
        volume = lots or str(execution["lots"])
        if action in ("open", "increase", "place"):
            ticket = ticket or self.ticket()
            state = self.position(
                volume, execution["side"], ticket, symbol=execution["symbol"], tag=str(execution["id"])
            )
            state |= {level: None if execution[level] is None else str(execution[level]) for level in ("sl", "tp")}
            if action == "place":
                state |= {"kind": "order", "order_type": execution["order_type"], "price": str(execution["price"])}
            self.report(execution, positions=[state], filled_lots=volume, price="1.10000")
            return str(ticket)
        ticket = execution["ticket"]
        held = self.one(
            "select lots from public.positions where account_id = %s and ticket = %s and kind = private.kind_of(%s)",
            execution["account_id"], ticket, action,
        )  # fmt: skip
        left = held if action in ("modify", "amend") else held - execution["lots"] if action != "cancel" else 0
        kind = "order" if action in ("cancel", "amend") else "position"
        levels = {level: None if execution[level] is None else str(execution[level]) for level in ("sl", "tp")}
        state = self.position(str(left), execution["side"], ticket, symbol=execution["symbol"], kind=kind, **levels)
        if kind == "order":
            state["order_type"] = "limit"
        self.report(execution, positions=[state], filled_lots=volume, price="1.10000")
        return str(ticket)

    def settle(self, rounds: int = 20) -> None:
        """Every broker fills everything at once, until nothing is in flight."""
        for _ in range(rounds + 1):
            waiting = [e for e in self.open_executions() if e["status"] == "queued"]
            if not waiting:
                return
            self.fill(waiting[0])
        raise AssertionError("still executions in flight after many rounds")

    # -- looks -------------------------------------------------------------------------------------------------

    def book(self, account: str) -> list[tuple[str, str]]:
        return sorted(
            (str(r["side"]), f"{r['lots']:.2f}")
            for r in self.rows(
                "select side, lots from public.positions where account_id = %s and closed_at is null",
                self.accounts[account],
            )
        )

    def reasons(self, account: str) -> dict[str, int]:
        return {
            r["reason"]: r["n"]
            for r in self.rows(
                "select o.reason, count(*)::int as n from public.copy_outcomes o join public.copiers c on c.id ="
                " o.copier_id"
                " where c.follower_account_id = %s and o.reason is not null group by 1",
                self.accounts[account],
            )
        }

    def unexplained(self) -> int:
        return int(self.one("select count(*) from public.unexplained_pairs"))
