"""A limit of follower H that no open may cross: what its stops can lose, computed here, and whether each decision
agrees."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from brokers import CENT, Brokers, Row
from masters import Masters
from quiet_world import MASTERS, Discrepancies, Pair, QuietWorld
from settings import BALANCES, Setting

FLOOR = Decimal(8900)
ROOM = BALANCES["H"] - FLOOR
BID, ASK = Decimal("1.1"), Decimal("1.1001")
#: of one lot
CONTRACT = 100000

#: `wider`: the stop that is being set
HELD = """
    select p.side, p.lots, p.sl, p.price, p.kind = 'order' as waits, (
        select q.sl from public.trade_execution_queue q where q.account_id = p.account_id and q.in_flight
          and q.ticket = p.ticket and q.action = case p.kind when 'order' then 'amend' else 'modify' end
        order by q.id desc limit 1) as wider
    from public.positions p where p.account_id = %s and p.closed_at is null
"""
COMING = """
    select q.id, q.side, q.lots, q.sl, q.price, q.action = 'place' as waits, null::numeric as wider, q.warnings,
      a.name as master, l.master_kind, l.master_ticket
    from public.trade_execution_queue q
    join public.position_links l on l.id = q.link_id join public.trading_accounts a on a.id = l.master_account_id
    where q.account_id = %s and q.in_flight and q.action in ('open', 'increase', 'place')
"""
LINKS = """
    select l.id, l.state, l.reason, l.seen_master_lots as seen, l.side, l.master_side, l.master_kind, l.master_ticket,
      a.name as master, m.sl, m.tp, m.price
    from public.position_links l join public.trading_accounts a on a.id = l.master_account_id
    join public.positions m on m.account_id = l.master_account_id and m.ticket = l.master_ticket
      and m.kind = l.master_kind
    where l.follower_account_id = %s
"""


def can_lose(row: Mapping[str, Any], sl: Decimal | None) -> Decimal:
    """By one lot, from the market or the order's own price, to this stop."""
    if sl is None:
        return Decimal(0)
    start = row["price"] if row["waits"] else BID if row["side"] == "buy" else ASK
    return max(Decimal(0), start - sl if row["side"] == "buy" else sl - start) * CONTRACT


class Guard:
    """`look` judges what was decided since the last look. It reads what is held and on its way from the database,
    because that is all the planner can know, and nothing of what the planner makes of it."""

    def __init__(
        self,
        world: QuietWorld,
        masters: Masters,
        brokers: Brokers,
        doubts: Discrepancies,
        settings: Mapping[tuple[str, str], Setting],
        *,
        shrink: bool,
    ) -> None:
        self.world = world
        self.masters = masters
        self.brokers = brokers
        self.doubts = doubts
        self.settings = settings
        self.shrink = shrink
        self._links: dict[int, Row] = {}
        self._last = masters.last_execution()
        masters.stops = True
        rule = {"account_id": world.accounts["H"], "kind": "equity_floor", "threshold": str(FLOOR)}
        world.as_user("save_protection_rule", rule | {"would_breach": "shrink" if shrink else "refuse"})

    def look(self) -> None:
        account = self.world.accounts["H"]
        held, coming = self.world.rows(HELD, account), self.world.rows(COMING, account)
        least = self._bound(held + coming, wide=False)
        most = self._bound(held + coming, wide=True)
        for row in coming:
            if row["id"] > self._last and can_lose(row, row["sl"]) > 0:
                assert least < ROOM, f"execution {row['id']} crosses the limit: {least} can be lost, not {ROOM}"
                if "breach_shrunk" in row["warnings"]:
                    self._doubt(row)
                    assert most + CENT * can_lose(row, row["sl"]) >= ROOM, f"execution {row['id']} is too small"
        self._last = max([self._last, *(row["id"] for row in coming)])
        for link in self.world.rows(LINKS, account):
            before = self._links.get(link["id"], {})
            if link != before and link["master"] in MASTERS:
                self._judge(link, before, most)
            self._links[link["id"]] = link

    @staticmethod
    def _bound(rows: Iterable[Row], *, wide: bool) -> Decimal:
        return sum(
            (
                row["lots"] * max(can_lose(row, row["sl"]), can_lose(row, row["wider"]) if wide else Decimal(0))
                for row in rows
            ),
            Decimal(0),
        )

    def _judge(self, link: Row, before: Row, most: Decimal) -> None:
        """A link that has changed: was it right to refuse the open, or the increase?"""
        if link["reason"] != "would_breach" or before.get("reason") == "would_breach":
            return
        pair = self._doubt(link)
        if before.get("state") == "live" and (link["state"] == "ended" or link["master_kind"] == "order"):
            return  # an order that was withdrawn, or the market was not taken for it
        setting = self.settings[pair[:2]]
        wanted = setting.size(link["seen"] - before.get("seen", Decimal(0)), link["master_side"])
        sl, _ = setting.levels(link["sl"], link["tp"])
        one = can_lose(link | {"waits": link["master_kind"] == "order"}, sl)
        lots = min(wanted, setting.lots_min) if self.shrink else wanted
        assert most + lots * one >= ROOM, (
            f"link {link['id']} was refused: {most} can be lost, and {lots * one} more, of {ROOM}"
        )

    def _doubt(self, row: Row) -> Pair:
        """Its pair may hold less."""
        pair = Pair(row["master"], "H", self.masters.root[row["master_kind"], row["master_ticket"]])
        self.doubts.pairs.update({pair, pair._replace(root=self.masters.joined.get(pair.root, pair.root))})
        return pair
