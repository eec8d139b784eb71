"""A whole random example: settings, steps, the way to rest, and the judgement.

The oracle knows nothing of the planner. It compares what the brokers hold with what the masters' events and the
settings say (settings.py); of the database it asks only what it claims: that all is explained, nothing is in flight,
and which share of N's position is whose.
"""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from agents import Agents
from brokers import CENT, OWN, Brokers
from followers import Followers
from limits import Guard
from masters import Masters
from quiet_world import MASTERS, OTHER, QUIET, Discrepancies, Key, Pair, QuietWorld
from settings import CHOICES, Setting

Step = tuple[str, int, int, int]
Verb = Callable[[int, int, int], None]
#: which followers there are → the copiers that lead to them; C follows H, which is then a master, too
COPIERS = {
    "H": [("M1", "H"), ("M2", "H")],
    "N": [("M1", "N"), ("M2", "N")],
    "HN": [("M1", "H"), ("M2", "H"), ("M1", "N"), ("M2", "N")],
    "HC": [("M1", "H"), ("M2", "H")],
}
CHAIN = ("H", "C")
#: the choice by which H has a limit that no open may cross
GUARDED = 3
#: followers whose list of symbols is not told at first → the choices that say so
UNTOLD = {"H": (1, 2), "N": (2, 3)}
# the usual more than once
OF_MASTERS = (
    ["open"] * 4
    + ["increase"] * 2
    + ["reduce"] * 3
    + ["flip", "flip", "level", "close", "order", "amend", "cancel", "filled"]
    + ["order", "order_level", "fills_into", "fills_into", "level", "close_by"]
)
OF_MASTERS += ["reticket", "hold", "deliver", "repeat", "snapshot", "blink", "move", "mode", "rename"]
#: where there is no netting follower, which has one position only
OF_NUMBERS = ["twin", "twin"]
OF_AGENTS = ["done"] * 9 + ["partial", "refuse", "refuse_for_now", "expire", "after_all", "lose", "found"]
OF_AGENTS += ["late", "late_in", "report_again", "time", "time"]
OF_FOLLOWERS = [
    "blink_there",
    "move_there",
    "pause",
    "flatten",
    "trading",
    "part",
    "quiet",
    "rename_there",
    "rename_there",
]
OF_USERS = {"H": ["order_fills", "user_trims", "user_closes", "user_opens"], "N": ["user_deals"], "C": []}


def verbs(followers: str) -> list[str]:
    """Everything that may happen to these followers."""
    of_masters = OF_MASTERS if "N" in followers else OF_MASTERS + OF_NUMBERS
    return of_masters + OF_AGENTS + OF_FOLLOWERS + [verb for name in followers for verb in OF_USERS[name]]


def how_many_choices(followers: str) -> int:
    return 1 + CHOICES * len(COPIERS[followers])


class Farm:
    def __init__(self, world: QuietWorld, followers: str, choices: Sequence[int] = ()) -> None:
        """Without choices every copier multiplies by 1 or, for M2, by a half."""
        self.world = world
        self.doubts = Discrepancies()
        world.begin()
        lots_max = Decimal("0.25") if choices and choices[0] == 7 else Decimal(50)
        lots_min = Decimal("0.05") if choices and choices[0] == 5 else CENT
        self.settings = self._settings(followers, choices[1:], lots_max, lots_min)
        for copier, setting in self.settings.items():
            world.as_user("save_copier", {"id": world.copiers[">".join(copier)]} | setting.columns())
        self.masters = Masters(world, self.doubts, self.settings)
        symbols = choices[0] if choices else 0
        self.brokers = Brokers(world, lots_min, lots_max, retickets=symbols in (4, 6), shares=symbols != 4)
        self.agents = Agents(world, self.masters, self.brokers, self.doubts)
        self.followers = Followers(world, self.masters, self.brokers, self.agents, self.doubts, followers, lots_max)
        for name, of in UNTOLD.items():
            if choices and symbols in of and name in followers:
                self.followers.forget_list(name)
        self.guard = None
        if symbols == GUARDED and "N" not in followers:
            self.guard = Guard(world, self.masters, self.brokers, self.doubts, self.settings, shrink=choices[-1] >= 4)

    @staticmethod
    def _settings(
        followers: str, choices: Sequence[int], lots_max: Decimal, lots_min: Decimal
    ) -> Mapping[tuple[str, str], Setting]:
        copiers = COPIERS[followers]
        if not choices:
            return {copier: Setting(sizing_value="1" if copier[0] == "M1" else "0.5") for copier in copiers}
        return {
            copier: Setting.chosen(
                *copier, choices[n * CHOICES : (n + 1) * CHOICES], lots_max, lots_min if copier[1] == "H" else CENT
            )
            for n, copier in enumerate(copiers)
        }

    def play(self, steps: Sequence[Step]) -> None:
        for verb, *numbers in steps:
            self.act(verb, *numbers)
            self._look()
        self._settle()
        self._check()

    def act(self, verb: str, *numbers: int) -> None:
        masters = verb in OF_MASTERS or verb in OF_NUMBERS
        side = self.masters if masters else self.agents if verb in OF_AGENTS else self.followers
        act: Verb = getattr(side, verb)
        act(*numbers)

    def _look(self) -> None:
        if self.guard:
            self.guard.look()

    # -- the way to rest ---------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Whatever was held back arrives, everything is on, brokers do what they are told, and prices reach what they
        must."""
        while self.masters.deliver_one():
            self._look()
        self.agents.delaying = False
        for copier in self.settings:
            self.masters.set_mode(copier, "on")
            self._look()
        if QUIET in self.doubts.silent:
            self.followers.set_quiet(False)
        if ("", "") in self.doubts.silent:
            self.followers.set_trading("on")
        for key in [key for key in self.doubts.silent if not key[0] and key[1] not in self.masters.flattening]:
            self.followers.set_state(key[1], "on")
        while self.masters.untold:
            self.followers.part(0, 7, 0)
        for _ in range(200):
            self._look()
            if not self._move():
                return
        left = [(e["id"], e["action"], e["status"], str(e["lots"]), e["reason"]) for e in self.world.open_executions()]
        raise AssertionError(f"never settles: {left}")

    def _move(self) -> bool:
        """One thing of what is left to do; False: there is nothing."""
        agents = self.agents
        if agents.lost:
            agents.found(0, 0, 0)
        elif agents.reports:
            agents.late_in(0, 0, 0)
        elif agents.queue():
            agents.done(0, 0, 0)
        elif key := self._due_order():
            self.followers.fill_order(key)
        else:
            agents.time(0, 0, 0)
            if agents.queue():
                return True
            self.followers.look_if_flat()
            return bool(self.masters.flattening or agents.queue())
        return True

    def _master_of(self, pair: Pair) -> Mapping[str, Any] | None:
        """What the master holds: for C, H itself is the master."""
        if pair.master in MASTERS:
            return self.masters.of_root(pair.master, pair.root)
        x = self.brokers.of_root("H", pair.root)
        return (
            None
            if x is None
            else {
                "kind": x.kind,
                "side": x.side,
                "lots": x.lots,
                "sl": x.sl,
                "tp": x.tp,
                "price": x.price,
                "symbol": x.symbol,
            }
        )

    def _due_order(self) -> Key | None:
        """A copied order that hangs on though its master's has filled."""
        for key, x in self.brokers.hedging.items():
            if x.pair and x.kind == "order" and x.lots > 0:
                master = self._master_of(x.pair)
                if master and master["kind"] == "position":
                    return key
        return None

    # -- the judgement -----------------------------------------------------------------------------------------

    def _check(self) -> None:
        world = self.world
        left = [(e["id"], e["action"], e["status"], e["reason"]) for e in world.open_executions()]
        assert left == [], "something is in flight"
        assert world.unexplained() == 0, world.rows("select * from public.unexplained_pairs")
        assert world.rows("select * from private.symbol_waits") == [], "something waits for a symbol that was told"
        loading = "select * from public.copy_outcomes where reason = 'symbols_loading'"
        assert world.rows(loading) == [], "a pair has no decision"
        for name in self.followers.names.replace("N", ""):
            self._check_mirror(name)
        pairs = [Pair(*copier, root) for copier in self.settings for root in self.masters.roots(copier[0])]
        if "C" in self.followers.names:
            own = dict.fromkeys(x.root for x in self.brokers.hedging.values() if x.account == "H")
            pairs += [Pair(*CHAIN, root) for root in own]
        for pair in pairs:
            (self._check_share if pair.follower == "N" else self._check_hedging)(pair)
        if "N" in self.followers.names:
            self._check_net([pair for pair in pairs if pair.follower == "N"])
        self._check_decided_once()
        if not any(self._master_of(pair) for pair in pairs):
            assert world.rows("select id from public.position_links where state = 'live'") == [], (
                "a link outlives its master"
            )
        self._check_second_pass()

    def _check_decided_once(self) -> None:
        """No more opens than the master began positions or turned them."""
        opened: dict[Pair, int] = {}
        for row in self.world.rows(
            "select m.name as master, f.name as follower, l.master_kind, l.master_ticket,"
            " count(distinct q.step_id) as steps"
            " from public.trade_execution_queue q join public.position_links l on l.id = q.link_id"
            " join public.trading_accounts m on m.id = l.master_account_id join public.trading_accounts f on f.id ="
            " q.account_id"
            " where q.action in ('open', 'place') and q.parts is null group by 1, 2, 3, 4"
        ):
            roots = self.masters.root if row["master"] in MASTERS else self.brokers.root
            pair = Pair(row["master"], row["follower"], roots[row["master_kind"], row["master_ticket"]])
            opened[pair] = opened.get(pair, 0) + row["steps"]
        for pair, times in opened.items():
            allowed = (
                1 if pair[:2] == CHAIN else self.masters.courses[pair].decisions + (pair.root in self.masters.belated)
            )
            assert times <= allowed, f"{pair} was opened {times} times, not {allowed}"

    def _wanted(self, pair: Pair) -> tuple[Decimal, Decimal, str | None]:
        """The least, the most and the side that the settings ask of this pair."""
        p = self._master_of(pair)
        if p is None or (p["kind"] == "order" and pair.follower == "N"):
            return Decimal(0), Decimal(0), None
        if pair[:2] == CHAIN:
            return p["lots"], p["lots"], p["side"]
        return *self.masters.courses[pair].bounds(), self.settings[pair[:2]].side(p["side"])

    def _check_mirror(self, name: str) -> None:
        shown = self.world.rows(
            "select * from public.positions where account_id = %s and closed_at is null", self.world.accounts[name]
        )
        mirror = {(row["kind"], row["ticket"]): (row["symbol"], row["side"], row["lots"]) for row in shown}
        holdings = self.brokers.holdings(name)
        assert mirror == {key: (x.symbol, x.side, x.lots) for key, x in holdings.items()}, "the mirror errs"
        left_behind = self.world.rows(
            "select l.id, l.symbol, p.symbol as renamed from private.link_legs g"
            " join public.position_links l on l.id = g.link_id join public.positions p on p.account_id = g.account_id"
            " and p.ticket = g.ticket and p.kind = g.ticket_kind"
            " where g.account_id = %s and l.ended_at is null and l.symbol <> p.symbol", self.world.accounts[name]
        )  # fmt: skip
        assert left_behind == [], "a copy has another symbol than its positions"
        own = [x.lots for x in holdings.values() if x.pair is None]
        assert own == [OWN] * len([x for x in self.brokers.hedging.values() if x.account == name and x.pair is None]), (
            "a user's own trade was touched"
        )

    def _compare(self, pair: Pair, held: Decimal, sides: set[str]) -> None:
        least, most, side = self._wanted(pair)
        assert sides <= {side}, f"{pair}: the wrong side: {sides}, not {side}"
        assert held <= most, f"{pair}: too much: {held}, not {most}"
        unsure = pair[:2] == CHAIN and self.followers.stopped  # H may have traded while nobody was followed
        if pair not in self.doubts.pairs and not unsure and not (pair.follower == "N" and self.followers.own_on_net):
            assert held >= least, f"{pair}: too little: {held}, not {least}"

    def _check_hedging(self, pair: Pair) -> None:
        joined = self.masters.joined if pair.master in MASTERS else {}
        if pair.root in joined:
            return  # counted with the position that it filled into
        pairs = {pair, *(pair._replace(root=order) for order, root in joined.items() if root == pair.root)}
        copies = [x for x in self.brokers.holdings(pair.follower).values() if x.pair in pairs]
        self._compare(pair, sum((x.lots for x in copies), Decimal(0)), {x.side for x in copies})
        p = self._master_of(pair)
        if p is None or pair in self.doubts.levels:
            return
        wanted = (p["sl"], p["tp"]) if pair[:2] == CHAIN else self.settings[pair[:2]].levels(p["sl"], p["tp"])
        for x in copies:
            named = OTHER if p["symbol"] == OTHER else self.brokers.symbols[pair.follower]
            assert x.symbol == named, f"{pair}: the copy is in {x.symbol}, not {named}"
            assert x.kind == "position" or p["kind"] == "order", f"{pair}: a copy is still an order"
            assert (x.sl, x.tp) == wanted, f"{pair}: the levels are {x.sl} and {x.tp}, not {wanted}"
            assert x.kind == "position" or Decimal(x.price) == Decimal(p["price"]), f"{pair}: the price is {x.price}"

    def _shares(self, copier: str | None = None) -> list[dict[str, Any]]:
        return self.world.rows(
            "select l.side, l.master_kind, l.master_ticket, g.lots from private.link_legs g"
            " join public.position_links l on l.id = g.link_id"
            " where g.account_id = %s and (%s::uuid is null or l.copier_id = %s)",
            self.world.accounts["N"],
            copier,
            copier,
        )

    def _root_of(self, row: Mapping[str, Any]) -> str:
        return self.masters.root[row["master_kind"], row["master_ticket"]]

    def _check_share(self, pair: Pair) -> None:
        rows = self._shares(self.world.copiers[f"{pair.master}>N"])
        mine = [row for row in rows if self._root_of(row) == pair.root]
        self._compare(pair, sum((row["lots"] for row in mine), Decimal(0)), {row["side"] for row in mine})

    def _check_net(self, pairs: Sequence[Pair]) -> None:
        rows = self._shares()
        shares = sum((row["lots"] if row["side"] == "buy" else -row["lots"] for row in rows), Decimal(0))
        brokers = self.brokers
        own = brokers.net - shares
        assert abs(own) <= self.followers.own_on_net, f"{own} of the net position {brokers.net} is nobody's"
        if rows and not self.followers.own_on_net and brokers.net and Pair("", "N", "") not in self.doubts.levels:
            (owner,) = [pair for pair in pairs if pair.root == self._root_of(rows[0])]
            p = self._master_of(owner)
            wanted = self.settings[owner[:2]].levels(p["sl"], p["tp"]) if p and len(rows) == 1 else (None, None)
            assert (brokers.net_sl, brokers.net_tp) == wanted, f"the net position's levels are not {wanted}"

    def _check_second_pass(self) -> None:
        more = self.world.one(
            "select private.plan((select array_agg(id) from public.position_links where state = 'live'),"
            " (select array_agg(account_id) from public.positions), (select array_agg(ticket) from"
            " public.positions), null,"
            " clock_timestamp())"
        )
        assert not more, self.world.rows(
            "select id, action, symbol, lots from public.trade_execution_queue where id = any(%s)", more
        )
