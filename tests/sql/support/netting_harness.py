"""A planner's world with a follower that nets: the test is the broker of account N."""

from decimal import Decimal
from typing import Any

from planner_harness import World


class NettingWorld(World):
    """`net` is what N's broker holds: lots, + bought, - sold; `levels` the stop loss and take profit that stand on
    it."""

    net: Decimal = Decimal(0)
    levels: tuple[Any, Any] = (None, None)

    def deal(self, execution: dict[str, Any], filled: Decimal | None = None) -> None:
        """The broker deals what the execution says; its one position becomes the new net."""
        if execution["action"] == "modify":
            self.levels = (execution["sl"], execution["tp"])
            self.report(execution, positions=self.state(), filled_lots="0")
            return
        direction = 1 if (execution["side"] == "buy") == (execution["action"] == "open") else -1
        volume = filled or Decimal(str(execution["lots"]))
        if execution["action"] != "open":  # brokers take off a position only what is there
            assert execution["side"] == ("buy" if self.net > 0 else "sell"), execution
            assert volume <= abs(self.net), execution
        before = self.net
        self.net += direction * volume
        if before * self.net <= 0 or execution["sl"] is not None or execution["tp"] is not None:
            self.levels = (execution["sl"], execution["tp"])
        self.report(execution, positions=self.state(), filled_lots=str(volume), price="1.10000")

    def state(self, **more: Any) -> list[dict[str, Any]]:
        sl, tp = (None if level is None else str(level) for level in self.levels)
        return [
            self.position(
                str(abs(self.net)), "sell" if self.net < 0 else "buy", "net-1", **({"sl": sl, "tp": tp} | more)
            )
        ]

    def run(self) -> None:
        """N's broker deals everything that is queued, until nothing is."""
        for _ in range(12):
            waiting = [e for e in self.open_executions("N") if e["status"] == "queued"]
            if not waiting:
                return
            self.deal(waiting[0])
        raise AssertionError(f"never settles: {self.acts('N')}")

    def settle_both(self) -> None:
        """F's broker and N's do what they are told, until nothing is queued."""
        for _ in range(20):
            waiting = [e for e in self.open_executions("F") if e["status"] == "queued"]
            if waiting:
                self.fill(waiting[0])
            elif self.open_executions("N"):
                self.run()
            else:
                return
        raise AssertionError(f"never settles: {self.acts('F')} {self.acts('N')}")

    def come_due(self) -> None:
        """Every pause before another attempt is over."""
        self.db.execute(
            "update public.trade_execution_queue set next_attempt_at = '-infinity' where status = 'retrying'"
        )
        self.db.execute(
            "update public.position_links set replan_at = '-infinity' where replan_at is not null and state = 'live'"
        )
        self.db.execute("update private.net_ledgers set replan_at = '-infinity' where replan_at is not null")
        self.db.execute("select private.maintain_executions()")

    def acts(self, account: str = "F") -> list[tuple[str, str, str, str]]:
        """Everything the account was ever told to do: action, side, lots, status."""
        return [(e["action"], e["side"], f"{e['lots']:.2f}", e["status"]) for e in self.executions(account)]

    def held(self, account: str) -> Decimal:
        return sum((Decimal(lots) for _, lots in self.book(account)), Decimal(0))

    def shares(self) -> dict[str, Decimal]:
        """What N holds for each master, whatever the side."""
        return {
            r["master"]: r["lots"]
            for r in self.rows(
                "select a.name as master, sum(g.lots) as lots from private.link_legs g"
                " join public.position_links l on l.id = g.link_id"
                " join public.trading_accounts a on a.id = l.master_account_id group by 1"
            )
        }
