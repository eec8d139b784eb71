"""What the database is told of one account between its trades: figures, specs and quotes, mostly when they changed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NoReturn, Protocol

from agent import wire
from agent.clock import DatabaseClock
from agent.model import AccountState, Quote, SymbolSpec
from agent.platforms.protocol import AccountChanged, AdapterError
from agent.retry import Refused, Unreachable
from agent.session import LEASE_OVER, MALFORMED, AccountSession

log = logging.getLogger(__name__)

#: seconds between two looks at quotes, and looks between two at the account's figures
QUOTE_EVERY: Final = 1.0
FIGURES_EVERY: Final = 5
#: looks after which unchanged figures are told again: the database trusts only what was measured lately
FIGURES_TOLD_EVERY: Final = 20
#: looks after which quotes that did not move are told again: the database does not rely on old ones
QUOTES_AGAIN_EVERY: Final = 20
#: specs told at once: by the report after a login besides what is watched and held, and by each look after it until all are told
SPECS_AT_ONCE: Final = 80
#: looks after which the quotes that convert the account's money are told again: sizes of copies depend on them, not on their last
#: digit. The database takes none over 60 s old (`symbol_quote_max_age_s`), and looks are farther apart where a broker is slow.
CONVERSIONS_EVERY: Final = 20
#: accounts that are kept in cents of a currency
CENTS: Final = {"USC": "USD", "EUC": "EUR", "GBC": "GBP"}
#: currencies without a pair of their own are converted by way of it
DOLLAR: Final = "USD"
READ_TIMEOUT: Final = 10

StateReport = dict[str, object]


class StateSink(Protocol):
    async def report_account_state(self, state: StateReport) -> int | None:
        """In how many milliseconds the database wants to see the figures again; None: at the usual pace."""
        ...


class AccountReports:
    """Reports of one session. `watch` may change at any time."""

    def __init__(
        self,
        session: AccountSession,
        sink: StateSink,
        clock: DatabaseClock,
        watch: Iterable[str],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._session = session
        self._sink = sink
        self._clock = clock
        self._sleep = sleep
        self._watched: frozenset[str] = frozenset(watch)
        self._specs: dict[str, SymbolSpec] = {}
        self._unknown: set[str] = set()
        #: symbols of the account whose specs are still to be told: without them nothing can be copied into it
        self._untold: list[str] = []
        self._quotes: dict[str, Quote] = {}
        self._currency = ""
        self._figures: AccountState | None = None
        self._looks = 0
        self._told_at_look = 0
        self._converted_at_look = 0
        self._funds_watched = False
        #: seconds until a look that the database asked for
        self._look_again: float | None = None

    def watch(self, symbols: Iterable[str], *, funds: bool = False) -> None:
        """The symbols whose specs and quotes the database needs; names that the account does not have are ignored.

        `funds`: a protection rule watches the account's figures, so they are told at every look.
        """
        self._watched = frozenset(symbols)
        self._funds_watched = funds

    async def first(self, state: AccountState) -> None:
        """The report after a login: figures, and the specs of every symbol that matters. Raises `AdapterError`, `CallFailed`."""
        adapter = self._session.adapter
        self._currency = CENTS.get(state.currency, state.currency)
        names = await adapter.symbols()
        held = [position.symbol for position in await adapter.positions()]
        fresh = await self._read_specs({*names[:SPECS_AT_ONCE], *self._watched, *held})
        self._untold = [name for name in names if name not in fresh]
        # A quote of a symbol without its specification would have the whole report refused.
        quotes = await self._read_quotes(fresh.keys() & {*self._watched, *held, *self._conversions(fresh)})
        await self._send(state, fresh, quotes)

    async def keep(self) -> NoReturn:
        """Report changes until cancelled. Trouble with reads is the watcher's affair, a lost call is made good by the next."""
        while True:
            await self._sleep(QUOTE_EVERY if self._look_again is None else min(QUOTE_EVERY, self._look_again))
            self._looks += 1
            if self._looks % QUOTES_AGAIN_EVERY == 0:
                self._quotes.clear()
            told = self._looks - self._told_at_look >= FIGURES_TOLD_EVERY or self._funds_watched or self._look_again is not None
            try:
                async with asyncio.timeout(READ_TIMEOUT):
                    await self._look(figures=told or self._looks % FIGURES_EVERY == 0, told=told)
            except AccountChanged:
                raise
            except (AdapterError, TimeoutError, Unreachable, Refused) as error:
                if isinstance(error, Refused) and error.code != LEASE_OVER:
                    raise
                log.info(
                    "account_report_skipped",
                    extra={"account": self._session.account_id, "error": f"{type(error).__name__}: {error}"},
                )

    async def _look(self, *, figures: bool, told: bool) -> None:
        """`figures`: read the account's, too; `told`: report them even if they are the same."""
        doubtful = frozenset(self._session.doubtful)
        new_names = self._watched - self._specs.keys() - self._unknown
        more = self._untold[:SPECS_AT_ONCE]
        specs = await self._read_specs(new_names.union(doubtful, more))
        wanted = self._watched & (self._specs.keys() | specs.keys())
        convert = self._looks - self._converted_at_look >= CONVERSIONS_EVERY
        quotes = await self._read_quotes({*wanted, *self._conversions(self._specs | specs if convert else specs)})
        state = await self._session.adapter.account() if figures else None
        if state is not None:
            self._session.check_login(state)
        if state == self._figures and not told:
            state = None
        if specs or quotes or state is not None:
            await self._send(state, specs, quotes)
        if convert:  # only now: what could not be told is told by the next look
            self._converted_at_look = self._looks
        self._session.doubtful.difference_update(doubtful)
        del self._untold[: len(more)]

    def _conversions(self, specs: Mapping[str, SymbolSpec]) -> Iterator[str]:
        """Pairs by whose quotes the database turns profits and funds into the account's money.

        Those of its own currency; for what has none with it the pair with the dollar: a euro account converts yen by USDJPY.
        """
        pairs = {
            name: {spec.margin_currency, spec.profit_currency}
            for name, spec in specs.items()
            if spec.margin_currency != spec.profit_currency and spec.margin_currency + spec.profit_currency in name.upper()
        }
        direct = {currency for pair in pairs.values() if self._currency in pair for currency in pair}
        for name, pair in pairs.items():
            if self._currency in pair or (DOLLAR in pair and not pair <= direct):
                yield name

    async def _read_specs(self, names: Iterable[str]) -> dict[str, SymbolSpec]:
        found: dict[str, SymbolSpec] = {}
        for name in names:
            spec = await self._session.adapter.symbol(name)
            if spec is None:
                self._unknown.add(name)
            else:
                found[name] = spec
        return found

    async def _read_quotes(self, names: Iterable[str]) -> dict[str, Quote]:
        """Quotes that moved since the last report."""
        moved: dict[str, Quote] = {}
        for name in names:
            quote = await self._session.adapter.quote(name)
            last = self._quotes.get(name)
            if quote is not None and (last is None or (last.bid, last.ask) != (quote.bid, quote.ask)):
                moved[name] = replace(quote, at=self._clock.now())
        return moved

    async def _send(self, state: AccountState | None, specs: dict[str, SymbolSpec], quotes: dict[str, Quote]) -> None:
        """One call; what it carried counts as told only when it arrived."""
        if state is not None:
            self._note_health(state)
        report = self._head()
        if state is not None:
            report |= {
                "currency": state.currency,
                "leverage": state.leverage,
                "mode": state.mode,
                "balance": state.balance,
                "equity": state.equity,
                "margin": state.margin,
                "free_margin": state.free_margin,
            }
        names = sorted(specs.keys() | quotes.keys())
        symbols = [wire.symbol_to_json(name, specs.get(name), quotes.get(name)) for name in names]
        again_ms = await self._deliver(report, symbols)
        if state is not None:
            self._figures, self._told_at_look = state, self._looks
            self._look_again = None if again_ms is None else max(0, again_ms) / 1000
        self._specs |= specs
        self._quotes |= quotes

    def _note_health(self, state: AccountState) -> None:
        if state.trade_allowed:
            self._session.well("trade_allowed")
        else:
            text = "trading_off: the terminal or the broker does not allow this account to trade; switch trading on"
            self._session.trouble("trade_allowed", text)

    async def _deliver(self, report: StateReport, symbols: Sequence[StateReport]) -> int | None:
        """A symbol that the database refuses must not keep the account from trading the others: it is found by halves."""
        try:
            return await self._sink.report_account_state(report | {"symbols": symbols} if symbols else report)
        except Refused as error:
            if error.code not in MALFORMED or not symbols:
                raise
            if len(symbols) == 1:
                log.error(
                    "symbol_refused",
                    extra={"account": self._session.account_id, "symbol": symbols[0]["name"], "error": error.message},
                )
                return await self._deliver(report, ())
            middle = len(symbols) // 2
            again_ms = await self._deliver(report, symbols[:middle])
            await self._deliver(self._head(), symbols[middle:])
            return again_ms

    def _head(self) -> StateReport:
        session = self._session
        status, error = session.health()
        return {
            "account_id": session.account_id,
            "epoch": session.epoch,
            "session": session.session,
            "status": status,
            "error": error,
            "measured_at": self._clock.now(),
        }
