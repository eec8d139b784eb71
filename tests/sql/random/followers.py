"""What else happens at the followers: trades by hand, orders that fill, moves, pauses, flattening."""

from decimal import Decimal

from agents import Agents
from brokers import OWN, Brokers, Holding
from masters import Masters
from quiet_world import OTHER, QUIET, Discrepancies, Key, QuietWorld, pick

OPENED_SINCE = """
  select q.id, q.action, q.parts from public.trade_execution_queue q where q.id > %s and (
    q.parts is null and q.action in ('open', 'place', 'increase')
    or exists (select from jsonb_array_elements(q.parts) e where (e ->> 'lots')::numeric > 0))"""


class Followers:
    def __init__(
        self,
        world: QuietWorld,
        masters: Masters,
        brokers: Brokers,
        agents: Agents,
        doubts: Discrepancies,
        names: str,
        lots_max: Decimal,
    ) -> None:
        self.world = world
        self.masters = masters
        self.brokers = brokers
        self.agents = agents
        self.doubts = doubts
        self.names = names
        #: how much the user dealt on N in all, whatever the side
        self.own_on_net = Decimal(0)
        #: the symbols of lists that are not told yet
        self._specs: dict[str, list[dict[str, str]]] = {}
        self._quiet_since = 0
        #: all trading was stopped once
        self.stopped = False
        world.db.execute("update public.trading_accounts set funds_at = now() + interval '1 day'")
        world.db.execute(
            "update public.account_symbols set lots_max = %s, quoted_at = now() + interval '1 day'", (lots_max,)
        )
        least = (brokers.lots_min, world.accounts["H"])
        world.db.execute("update public.account_symbols set lots_min = %s where account_id = %s", least)

    def _tell(self, account: str, kind: str, key: Key) -> None:
        self.world.tell(account, self.world.note(account, kind, self.brokers.state(key)))

    # -- lists of symbols that are told in parts ---------------------------------------------------------------

    def forget_list(self, account: str) -> None:
        """The account has just logged in, and its agent has told none of its symbols yet."""
        execute, key = self.world.db.execute, self.world.accounts[account]
        self._specs[account] = [
            {k: str(v) for k, v in row.items() if v is not None and k not in ("account_id", "quoted_at")}
            for row in self.world.rows("select * from public.account_symbols where account_id = %s", key)
        ]
        execute("delete from public.account_symbols where account_id = %s", (key,))
        execute("update public.trading_accounts set symbols_complete = false where id = %s", (key,))
        self.masters.untold.add(account)

    def _tell_symbols(self, account: str, symbols: list[dict[str, str]], *, complete: bool) -> None:
        report = {"account_id": self.world.accounts[account], "epoch": self.world.epochs[account]}
        now = self.world.one("select now() + interval '1 day'").isoformat()
        symbols = [symbol | {"quoted_at": now} for symbol in symbols]
        self.world.as_agent(
            account, "report_account_state", report | {"symbols": symbols, "symbols_complete": complete}
        )

    def part(self, a: int, b: int, c: int) -> None:
        """Another part of a list: some other symbol, or the one that is traded, perhaps as the last."""
        account = pick(sorted(self.masters.untold), a)
        if account is None:
            return
        specs = self._specs[account]
        if b < 4:
            self._tell_symbols(account, [specs[0] | {"name": f"ZZ{c}TOP"}], complete=False)
        else:
            self._tell_symbols(account, specs, complete=c < 4)
            self.masters.untold.discard(account)

    def rename_there(self, a: int, b: int, c: int) -> None:
        """A follower's broker renames the symbol; nothing that is open tells of it if nothing is."""
        name, new = self.names[a % len(self.names)], f"EURUSD.{'abcdefgh'[b]}"
        old = self.brokers.symbols[name]
        known = "select count(*) from public.positions where account_id = %s and symbol = %s and closed_at is null"
        shown = [p for p in self.brokers.book(name) if p["symbol"] == old]
        if c < 4 or new == old or name in self.masters.untold or not shown:
            return
        if self.world.one(known, self.world.accounts[name], old):
            self.world.tell_renamed(name, old, new)
            self.brokers.rename(name, new)
            self.world.look(name, self.brokers.book(name))

    # -- brokers and users of hedging followers -----------------------------------------------------------------

    def _copies(self, kind: str) -> list[Key]:
        return [key for key, x in self.brokers.hedging.items() if x.lots > 0 and x.kind == kind and x.pair]

    def fill_order(self, key: Key) -> None:
        key = self.brokers.fill(key)
        self._tell(self.brokers.hedging[key].account, "opened", key)

    def order_fills(self, a: int, b: int, c: int) -> None:
        if key := pick(self._copies("order"), a):
            self.fill_order(key)

    def _by_hand(self, key: Key, lots: Decimal) -> None:
        x = self.brokers.hedging[key]
        x.lots = lots
        assert x.pair is not None
        self.doubts.pairs.update({x.pair, x.pair._replace(root=self.masters.joined.get(x.pair.root, x.pair.root))})
        self._tell(x.account, "reduced" if lots else "closed", self.brokers.reticket(key) or key)

    def user_trims(self, a: int, b: int, c: int) -> None:
        key = pick(self._copies("position"), a)
        if key and self.brokers.hedging[key].lots > Decimal("0.05"):
            self._by_hand(key, self.brokers.hedging[key].lots - Decimal("0.05"))

    def user_closes(self, a: int, b: int, c: int) -> None:
        if key := pick(self._copies("position"), a):
            self._by_hand(key, Decimal(0))

    def user_opens(self, a: int, b: int, c: int) -> None:
        """In the other symbol, and then perhaps an order, it may get the number of a copy."""
        symbol, kind = (OTHER, ("position", "order")[c % 2]) if b >= 4 else (self.brokers.symbols["H"], "position")
        ticket = self.brokers.number("H", kind, symbol)
        own = Holding("H", kind, ticket, symbol, "buy", OWN, None, None, None, None, f"{kind} {ticket}", price="1.05")
        self._tell("H", "opened" if kind == "position" else "ordered", self.brokers.add(own))

    def blink_there(self, a: int, b: int, c: int) -> None:
        """A good snapshot of a follower that lacks something, once."""
        name = self.names[a % len(self.names)]
        shown = self.brokers.book(name)
        if shown:
            self.world.look(name, [p for n, p in enumerate(shown) if n != b % len(shown)])
            self.world.look(name, shown)

    # -- the user of N ------------------------------------------------------------------------------------------

    def user_deals(self, a: int, b: int, c: int) -> None:
        """One deal moves everybody's position."""
        lots = Decimal(a % 7 - 3) / 10
        brokers = self.brokers
        brokers.net += lots
        self.own_on_net += abs(lots)
        if brokers.net == 0:
            brokers.net_sl = brokers.net_tp = None
        kind = "modified" if brokers.net else "closed"
        self.world.tell("N", self.world.note("N", kind, brokers.net_state()[0]))

    # -- the farm and its states --------------------------------------------------------------------------------

    def move_there(self, a: int, b: int, c: int) -> None:
        name = self.names[a % len(self.names)]
        self.world.move(name)
        self.agents.taken_over(name)

    def _pausable(self, number: int) -> str:
        return [name for name in self.names if name != "C"][number % (2 if len(self.names) > 2 else 1)]

    def pause(self, a: int, b: int, c: int) -> None:
        name = self._pausable(a)
        if c >= 4 and name not in self.masters.flattening:
            self.set_state(name, ("on", "monitor", "off", "on")[b % 4])

    def set_state(self, name: str, state: str) -> None:
        if state != "on":
            self.masters.doubt_waiting(("", name))
        self.world.as_user("pause_account", {"account_id": self.world.accounts[name], "state": state})
        self.masters.hear(("", name), silent=state != "on")

    def trading(self, a: int, b: int, c: int) -> None:
        """Operators stop all trading, or let it go on."""
        if c >= 5:
            self.set_trading(("on", "monitor", "off", "on")[b % 4])

    def set_trading(self, state: str) -> None:
        self.stopped = True
        if state != "on":
            self.masters.doubt_waiting(("", ""))
        self.world.db.execute("update public.trading_switch set state = %s, reason = 'a test' where one", (state,))
        self.world.db.execute("select private.sweep_trading(%s)", (state,))
        self.masters.hear(("", ""), silent=state != "on")

    def quiet(self, a: int, b: int, c: int) -> None:
        """A quiet window begins for the money that is traded, or ends."""
        if c >= 4:
            self.set_quiet(b % 2 == 0)

    def set_quiet(self, quiet: bool) -> None:
        self.stopped = True
        if quiet and QUIET not in self.doubts.silent:
            self.masters.doubt_waiting(QUIET)
            self._quiet_since = self.masters.last_execution()
            self.world.db.execute(
                "insert into public.quiet_windows (begins_at, ends_at, currencies, span)"
                " values (now() - interval '1 h', now() + interval '1 h', '{EUR}',"
                " tstzrange(now() - interval '1 d', now() + interval '1 d'))"
            )
        elif not quiet:
            opened = self.world.rows(OPENED_SINCE, self._quiet_since)
            assert QUIET not in self.doubts.silent or opened == [], "something was opened in a quiet window"
            self.world.db.execute("delete from public.quiet_windows")
        self.masters.hear(QUIET, silent=quiet)

    def flatten(self, a: int, b: int, c: int) -> None:
        name = self._pausable(a)
        if c < 6:
            return  # not too often
        self.masters.frozen = {}  # it closes what a copier that is off holds, too
        self.world.as_user("flatten_account", {"account_id": self.world.accounts[name]})
        self.masters.flattening[name] = self.masters.last_execution()
        self.masters.hear(("", name), silent=True)
        for pair, course in self.masters.courses.items():
            if pair.follower == name:
                course.end()

    def look_if_flat(self) -> None:
        """Two good snapshots end a flattening; then its user switches the account on again."""
        for name in sorted(self.masters.flattening):
            for _ in range(2):
                self.world.look(name, self.brokers.book(name))
            if (
                self.world.one(
                    "select copy_state from public.trading_accounts where id = %s", self.world.accounts[name]
                )
                == "off"
            ):
                del self.masters.flattening[name]
                self.set_state(name, "on")
