"""A whole random example: steps, the way to rest, and the judgement.

The oracle knows nothing of the planner. It compares what the brokers hold with what the masters hold and the settings say; of
the database it asks only what it claims: that all is explained, nothing is in flight, and which share of N's position is whose.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal

from planner_world import World
from random_followers import OWN, Followers
from random_masters import Doubts, Masters, Pair

MULTIPLIERS = {
    ("M1", "H"): Decimal(1),
    ("M2", "H"): Decimal("0.5"),
    ("M1", "N"): Decimal(1),
    ("M2", "N"): Decimal("0.5"),
}
Step = tuple[str, int, int, int]
Verb = Callable[[int, int, int], None]
# the usual more than once
OF_MASTERS = ["open", "open", "increase", "reduce", "reduce", "flip", "level", "close", "order", "amend", "cancel", "filled"]
OF_MASTERS += ["reticket", "hold", "deliver", "repeat", "snapshot", "mode"]
OF_FOLLOWERS = ["done", "done", "done", "done", "partial", "refuse", "refuse_for_now", "expire", "after_all", "lose", "found"]
OF_FOLLOWERS += ["late", "late_in", "report_again", "time", "time"]
OF_USERS = {"H": ["order_fills", "user_trims", "user_closes", "user_opens"], "N": ["user_deals"]}


def verbs(followers: str) -> list[str]:
    """Everything that may happen to these followers."""
    return OF_MASTERS + OF_FOLLOWERS + [verb for name in followers for verb in OF_USERS[name]]


class Farm:
    def __init__(self, world: World, followers: str) -> None:
        self.world = world
        self.doubts = Doubts()
        self.multipliers = {copier: factor for copier, factor in MULTIPLIERS.items() if copier[1] in followers}
        self.masters = Masters(world, self.doubts, list(self.multipliers))
        self.followers = Followers(world, self.masters, self.doubts)

    def play(self, steps: Sequence[Step]) -> None:
        for verb, *numbers in steps:
            side = self.masters if verb in OF_MASTERS else self.followers
            act: Verb = getattr(side, verb)
            act(*numbers)
        self._settle()
        self._check()

    # -- the way to rest ---------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Whatever was held back arrives, every copier is on, brokers do what they are told, and prices reach what they must."""
        self.masters.deliver_everything()
        self.followers._delaying = False
        for copier in self.multipliers:
            self.masters.set_mode(copier, "on")
        for _ in range(150):
            if not self._move():
                return
        left = [(e["id"], e["action"], e["status"], str(e["lots"]), e["reason"]) for e in self.world.open_executions()]
        raise AssertionError(f"never settles: {left}")

    def _move(self) -> bool:
        """One thing of what is left to do; False: there is nothing."""
        agents = self.followers
        if agents._lost:
            agents.found(0, 0, 0)
        elif agents._late:
            agents.late_in(0, 0, 0)
        elif agents.queue():
            agents.done(0, 0, 0)
        elif ticket := self._due_order():
            agents.fill_order(ticket)
        else:
            agents.time(0, 0, 0)
            return bool(agents.queue())
        return True

    def _due_order(self) -> str | None:
        """A copied order that hangs on though its master's has filled."""
        for ticket, x in self.followers.hedging.items():
            if x.pair and x.kind == "order" and x.lots > 0:
                master = self.masters.of_root(x.pair.master, x.pair.root)
                if master and master["kind"] == "position":
                    return ticket
        return None

    # -- the judgement -----------------------------------------------------------------------------------------

    def _check(self) -> None:
        world = self.world
        left = [(e["id"], e["action"], e["status"], e["reason"]) for e in world.open_executions()]
        assert left == [], "something is in flight"
        assert world.unexplained() == 0, world.rows("select * from public.unexplained_pairs")
        self._check_mirror()
        pairs = [Pair(master, follower, root) for master, follower in self.multipliers for root in self.masters.roots(master)]
        for pair in pairs:
            (self._check_hedging if pair.follower == "H" else self._check_share)(pair)
        self._check_net([pair for pair in pairs if pair.follower == "N"])
        if not any(self.masters.of_root(pair.master, pair.root) for pair in pairs):
            assert world.rows("select id from public.position_links where state = 'live'") == [], "a link outlives its master"
        self._check_second_pass()

    def _wanted(self, pair: Pair) -> tuple[Decimal, str | None]:
        """Lots and side that the settings ask of this pair."""
        p = self.masters.of_root(pair.master, pair.root)
        if p is None or (p["kind"] == "order" and pair.follower == "N"):
            return Decimal(0), None
        return self.multipliers[pair[:2]] * p["lots"], p["side"]

    def _check_mirror(self) -> None:
        if "H" not in self.world.accounts:
            return
        shown = self.world.rows(
            "select * from public.positions where account_id = %s and closed_at is null", self.world.accounts["H"]
        )
        mirror = {row["ticket"]: (row["side"], row["lots"]) for row in shown}
        assert mirror == {t: (x.side, x.lots) for t, x in self.followers.hedging.items() if x.lots > 0}, "the mirror errs"
        own = [x.lots for x in self.followers.hedging.values() if x.pair is None]
        assert own == [OWN] * len(own), "a user's own trade was touched"

    def _compare(self, pair: Pair, held: Decimal, sides: set[str]) -> None:
        wanted, side = self._wanted(pair)
        assert sides <= {side}, f"{pair}: the wrong side: {sides}, not {side}"
        assert held <= wanted, f"{pair}: too much: {held}, not {wanted}"
        if pair not in self.doubts.pairs and not (pair.follower == "N" and self.followers.own_on_net):
            assert held == wanted, f"{pair}: too little: {held}, not {wanted}"

    def _check_hedging(self, pair: Pair) -> None:
        copies = [x for x in self.followers.hedging.values() if x.pair == pair and x.lots > 0]
        self._compare(pair, sum((x.lots for x in copies), Decimal(0)), {x.side for x in copies})
        p = self.masters.of_root(pair.master, pair.root)
        if p is None or pair in self.doubts.levels:
            return
        wanted = None if p["sl"] is None else Decimal(p["sl"])
        for x in copies:
            assert x.kind == "position" or p["kind"] == "order", f"{pair}: a copy is still an order"
            if pair not in self.doubts.pairs:
                assert x.sl == wanted, f"{pair}: the stop loss is {x.sl}, not {wanted}"

    def _check_share(self, pair: Pair) -> None:
        rows = self.world.rows(
            "select l.side, l.master_ticket, g.lots from private.link_legs g join public.position_links l on l.id = g.link_id"
            " where l.copier_id = %s",
            self.world.copiers[f"{pair.master}>N"],
        )
        mine = [row for row in rows if self.masters.root[row["master_ticket"]] == pair.root]
        self._compare(pair, sum((row["lots"] for row in mine), Decimal(0)), {row["side"] for row in mine})

    def _check_net(self, pairs: Sequence[Pair]) -> None:
        rows = self.world.rows(
            "select l.side, g.lots from private.link_legs g join public.position_links l on l.id = g.link_id"
            " where g.account_id = %s",
            self.world.accounts["N"],
        )
        shares = sum((row["lots"] if row["side"] == "buy" else -row["lots"] for row in rows), Decimal(0))
        own = self.followers.net - shares
        assert abs(own) <= self.followers.own_on_net, f"{own} of the net position {self.followers.net} is nobody's"
        if len(rows) == 1 and not self.followers.own_on_net and not self.doubts.levels:
            sure = [pair for pair in pairs if self._wanted(pair)[0] and pair not in self.doubts.pairs]
            p = self.masters.of_root(sure[0].master, sure[0].root) if len(sure) == 1 else None
            if p is not None:
                wanted = None if p["sl"] is None else Decimal(p["sl"])
                assert self.followers.net_sl == wanted, f"the net position's stop loss is {self.followers.net_sl}, not {wanted}"

    def _check_second_pass(self) -> None:
        more = self.world.one(
            "select private.plan((select array_agg(id) from public.position_links where state = 'live'),"
            " (select array_agg(account_id) from public.positions), (select array_agg(ticket) from public.positions), null,"
            " clock_timestamp())"
        )
        assert not more, self.world.rows(
            "select id, action, symbol, lots from public.trade_execution_queue where id = any(%s)", more
        )
