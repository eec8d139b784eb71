"""What else happens at the followers: trades by hand, orders that fill, moves, pauses, flattening."""

from decimal import Decimal

from agents import Agents
from brokers import OWN, Brokers, Holding
from masters import QUIET, Discrepancies, Masters, QuietWorld, pick

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
        self._specs: dict[str, dict[str, str]] = {}
        self._quiet_since = 0
        #: all trading was stopped once
        self.stopped = False
        world.db.execute("update public.trading_accounts set funds_at = now() + interval '1 day'")
        world.db.execute("update public.account_symbols set lots_max = %s", (lots_max,))
        least = (brokers.lots_min, world.accounts["H"])
        world.db.execute("update public.account_symbols set lots_min = %s where account_id = %s", least)

    def _tell(self, account: str, kind: str, ticket: str) -> None:
        self.world.tell(account, self.world.note(account, kind, self.brokers.state(ticket)))

    # -- lists of symbols that are told in parts ---------------------------------------------------------------

    def forget_list(self, account: str) -> None:
        """The account has just logged in, and its agent has told none of its symbols yet."""
        execute, key = self.world.db.execute, self.world.accounts[account]
        row = self.world.rows("select * from public.account_symbols where account_id = %s", key)[0]
        self._specs[account] = {
            k: str(v) for k, v in row.items() if v is not None and k not in ("account_id", "quoted_at")
        }
        execute("delete from public.account_symbols where account_id = %s", (key,))
        execute("update public.trading_accounts set symbols_complete = false where id = %s", (key,))
        self.masters.untold.add(account)

    def _tell_symbols(self, account: str, symbol: dict[str, str], *, complete: bool) -> None:
        report = {"account_id": self.world.accounts[account], "epoch": self.world.epochs[account]}
        symbol = symbol | {"quoted_at": self.world.one("select now()").isoformat()}
        report |= {"symbols": [symbol], "symbols_complete": complete}
        self.world.as_agent(account, "report_account_state", report)

    def part(self, a: int, b: int, c: int) -> None:
        """Another part of a list: some other symbol, or the one that is traded, perhaps as the last."""
        account = pick(sorted(self.masters.untold), a)
        if account is None:
            return
        spec = self._specs[account]
        if b < 4:
            self._tell_symbols(account, spec | {"name": f"ZZ{c}TOP"}, complete=False)
        else:
            self._tell_symbols(account, spec, complete=c < 4)
            self.masters.untold.discard(account)

    # -- brokers and users of hedging followers -----------------------------------------------------------------

    def _copies(self, kind: str) -> list[str]:
        return [ticket for ticket, x in self.brokers.hedging.items() if x.lots > 0 and x.kind == kind and x.pair]

    def fill_order(self, ticket: str) -> None:
        x = self.brokers.hedging[ticket]
        x.kind = "position"
        self._tell(x.account, "opened", ticket)

    def order_fills(self, a: int, b: int, c: int) -> None:
        if ticket := pick(self._copies("order"), a):
            self.fill_order(ticket)

    def _by_hand(self, ticket: str, lots: Decimal) -> None:
        x = self.brokers.hedging[ticket]
        x.lots = lots
        assert x.pair is not None
        self.doubts.pairs.update({x.pair, x.pair._replace(root=self.masters.joined.get(x.pair.root, x.pair.root))})
        self._tell(x.account, "reduced" if lots else "closed", self.brokers.reticket(ticket) or ticket)

    def user_trims(self, a: int, b: int, c: int) -> None:
        ticket = pick(self._copies("position"), a)
        if ticket and self.brokers.hedging[ticket].lots > Decimal("0.05"):
            self._by_hand(ticket, self.brokers.hedging[ticket].lots - Decimal("0.05"))

    def user_closes(self, a: int, b: int, c: int) -> None:
        if ticket := pick(self._copies("position"), a):
            self._by_hand(ticket, Decimal(0))

    def user_opens(self, a: int, b: int, c: int) -> None:
        ticket = str(next(self.brokers.tickets))
        self.brokers.hedging[ticket] = Holding("H", "position", "buy", OWN, None, None, None, None)
        self._tell("H", "opened", ticket)

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
