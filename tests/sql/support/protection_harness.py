"""A planner's world whose accounts report their funds: looks with a clock of their own."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from netting_harness import NettingWorld


class ProtectionWorld(NettingWorld):
    """Master M, follower F of 100 000 USD. `clock` is when the next look is measured; late looks are looks here."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection)
        self.add_account("M", vps="a")
        self.add_account("F", vps="b", balance="100000")
        self.clock = datetime(2026, 1, 15, 12, tzinfo=UTC)
        self.looks_count_until(1_000_000_000)
        self.db.execute(
            "update public.trading_accounts a set session_vps_id = s.vps_id, funds_at = null, equity = null"
            " from public.account_vps_assignments s where s.account_id = a.id"
        )

    def looks_count_until(self, seconds: int) -> None:
        """`protection_max_age_s`, past its range if need be: the looks of this world have a clock of their own."""
        with self.db.transaction():
            self.db.execute("set local session_replication_role = replica")
            self.db.execute(
                "update public.system_config set value = %s::jsonb where key = 'protection_max_age_s'", (str(seconds),)
            )

    def rule(self, kind: str, threshold: str, account: str = "F", **settings: Any) -> str:
        answer = self.as_user(
            "save_protection_rule",
            {"account_id": self.accounts[account], "kind": kind, "threshold": threshold} | settings,
        )
        return str(answer["rule_id"])

    def look(
        self, equity: str, *, ms: float = 1000, margin: str | None = "0", account: str = "F", **more: Any
    ) -> int | None:
        """The account reports its funds, `ms` after the last look; returns when the database wants the next."""
        self.clock += timedelta(milliseconds=ms)
        return self.look_at(self.clock, equity, margin=margin, account=account, **more)

    def look_at(
        self, at: datetime, equity: str, *, margin: str | None = "0", account: str = "F", **more: Any
    ) -> int | None:
        self.clock = at
        answer = self.as_agent(account, "report_account_state", self.funds(account, at, equity, margin) | more)
        assert answer.pop("ok") is True
        again = answer.pop("look_again_ms", None)
        assert answer.keys() <= {"last_execution_id", "generation", "received_at", "sent_at"}
        return None if again is None else int(again)

    def funds(self, account: str, at: datetime, equity: str, margin: str | None = "0") -> dict[str, Any]:
        return {"account_id": self.accounts[account], "epoch": 1, "session": 1, "status": "connected",
                "balance": "100000",
                "equity": equity, "margin": margin, "free_margin": "0", "measured_at": at.isoformat()}  # fmt: skip

    def copy_state(self, account: str = "F") -> str:
        return str(self.one("select copy_state from public.trading_accounts where id = %s", self.accounts[account]))

    def triggered(self, rule: str) -> bool:
        return bool(self.one("select triggered_at is not null from public.protection_rules where id = %s", rule))

    def alerts(self) -> dict[str, int]:
        return {
            str(r["reason"]): int(r["times"])
            for r in self.rows("select reason, times from public.alerts where kind <> 'protection_near' order by id")
        }

    def looks(self) -> list[tuple[str, str]]:
        return [
            (str(r["equity"]), str(r["outcome"]))
            for r in self.rows("select trim_scale(equity) as equity, outcome from public.protection_looks order by id")
        ]

    def flat(self, account: str = "F") -> None:
        """Two good snapshots of an empty account."""
        for _ in range(2):
            self.send(account, self.event("snapshot", positions=[]))


def make(connection: psycopg.Connection[Any]) -> Iterator[ProtectionWorld]:
    w = ProtectionWorld(connection)
    yield w
    assert w.unexplained() == 0
