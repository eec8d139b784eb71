"""Reports one account's figures, symbol specifications and quotes to the database, mostly when they change."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, NoReturn, Protocol

from agent import limits
from agent.account.session import AccountSession
from agent.clock import DatabaseClock
from agent.connection.asked_names import asked_first
from agent.connection.conversions import CENTS, conversions
from agent.control_plane import encode
from agent.control_plane.contract import LEASE_OVER, concerns_entry
from agent.control_plane.retry import Refused, Unreachable
from agent.model import AccountState, Quote, SymbolSpec
from agent.platforms.adapter import AccountChanged, AdapterError

log = logging.getLogger(__name__)

#: seconds between two looks (reads of quotes), and looks between two reads of the account's figures
QUOTE_EVERY: Final = 1.0
FIGURES_EVERY: Final = 5
#: looks after which unchanged figures are reported again: the database trusts only recent ones
FIGURES_REPORTED_EVERY: Final = 20
#: looks after which unchanged quotes are reported again: the database does not rely on old ones
QUOTES_AGAIN_EVERY: Final = 20
#: most specs per report: in the report after a login besides watched and held symbols, then in each look until all are
#: reported
SPECS_PER_LOOK: Final = 80
#: looks after which the quotes that convert the account's money are reported again: sizes of copies depend on them, but
#: not on their last digit. The database uses none over 60 s old (`symbol_quote_max_age_s`), and looks are farther apart
#: where a broker is slow.
CONVERSIONS_EVERY: Final = 20
READ_TIMEOUT: Final = 10

StateReport = dict[str, object]


class StateSink(Protocol):
    async def report_account_state(self, state: StateReport) -> int | None:
        """Send a report. Returns in how many milliseconds the database needs the figures again; None: at the usual
        pace."""
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
        #: set when new symbols are to be watched: a copy may wait for them
        self._asked = asyncio.Event()
        self._looking = asyncio.Lock()
        self._specs: dict[str, SymbolSpec] = {}
        self._unknown: set[str] = set()
        #: symbols whose specs are not reported yet: without its spec nothing can be copied into a symbol
        self._unreported: list[str] = []
        self._quotes: dict[str, Quote] = {}
        self._currency = ""
        self._figures: AccountState | None = None
        #: numbers of the balance operations that were reported in this session
        self._operations_told: set[str] = set()
        self._looks = 0
        self._reported_at_look = 0
        self._converted_at_look = 0
        self._funds_watched = False
        self._after_fills = False
        #: number of symbols beyond the limits; 0 once it is reported
        self._left_out = 0
        #: number of positions left out, as last reported
        self._positions_left_out = 0
        #: seconds until the look that the database requested
        self._look_again: float | None = None

    def watch(self, symbols: Iterable[str], *, funds: bool = False, after_fills: bool = False) -> None:
        """The symbols whose specs and quotes the database needs; names that the account does not have are ignored.

        `funds`: a protection rule watches the account's figures, so they are reported at every look. `after_fills`:
        sizes depend on them, so they are reported right behind each fill.
        """
        before, self._watched = self._watched, frozenset(symbols)
        if new := self._watched - before:
            for name in new:  # an old quote counts for nothing, even if the price has not moved since
                self._quotes.pop(name, None)
            self._asked.set()
        self._funds_watched = funds
        self._after_fills = after_fills

    async def first(self, state: AccountState) -> None:
        """The report after a login: figures, and the specs of watched, held and the first other symbols. Raises
        `AdapterError`, `CallFailed`."""
        adapter = self._session.adapter
        self._currency = CENTS.get(state.currency, state.currency)
        everything = await adapter.symbols()
        held = [position.symbol for position in await adapter.positions()]
        names = limits.tradable(everything, held)
        self._left_out = len(set(everything)) - len(set(everything).intersection(names))
        held = [name for name in held if name in set(names)]
        fresh = await self._read_specs({*names[:SPECS_PER_LOOK], *self._watched, *held})
        self._unreported = [name for name in names if name not in fresh]
        # The database refuses a whole report for a quote of a symbol without a specification.
        quotes = await self._read_quotes(fresh.keys() & {*self._watched, *held, *conversions(fresh, self._currency)})
        await self._send(state, fresh, quotes, complete=not self._unreported)

    async def keep(self) -> NoReturn:
        """Report changes until cancelled. A failed read or call is logged; the next look reports what it lacked."""
        while True:
            await self._sleep(QUOTE_EVERY if self._look_again is None else min(QUOTE_EVERY, self._look_again))
            self._looks += 1
            if self._looks % QUOTES_AGAIN_EVERY == 0:
                self._quotes.clear()
            must_report = (
                self._looks - self._reported_at_look >= FIGURES_REPORTED_EVERY
                or self._funds_watched
                or self._look_again is not None
            )
            try:
                async with asyncio.timeout(READ_TIMEOUT):
                    await self._look(figures=must_report or self._looks % FIGURES_EVERY == 0, must_report=must_report)
            except (AdapterError, TimeoutError, Unreachable, Refused) as error:
                self._skip(error)

    async def asked(self) -> NoReturn:
        """Look at once when new symbols are to be watched, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                async with asyncio.timeout(READ_TIMEOUT):
                    await self._look(figures=False, must_report=False)
            except (AdapterError, TimeoutError, Unreachable, Refused) as error:
                self._skip(error)

    async def after_fills(self) -> NoReturn:
        """Report the figures as soon as the database knows of a fill, until cancelled: the next size depends on them.
        Fills that happen meanwhile share the next report."""
        while True:
            await self._session.filled.wait()
            self._session.filled.clear()
            if not self._after_fills:
                continue
            try:
                async with asyncio.timeout(READ_TIMEOUT):
                    measured_at = self._clock.now()
                    state = await self._session.adapter.account()
                    self._session.check_login(state)
                    await self._send(state, {}, {}, measured_at)
            except (AdapterError, TimeoutError, Unreachable, Refused) as error:
                self._skip(error)

    def _skip(self, error: Exception) -> None:
        """Log why a report was skipped; raises the error if the session must end for it."""
        if isinstance(error, AccountChanged) or (isinstance(error, Refused) and error.code != LEASE_OVER):
            raise error
        log.info(
            "account_report_skipped",
            extra={"account": self._session.account_id, "error": f"{type(error).__name__}: {error}"},
        )

    async def _look(self, *, figures: bool, must_report: bool) -> None:
        """One look at a time. `figures`: read the account's figures too; `must_report`: report them even if
        unchanged."""
        async with self._looking:
            await self._report_changes(figures=figures, must_report=must_report)

    async def _report_changes(self, *, figures: bool, must_report: bool) -> None:
        outdated_specs = frozenset(self._session.outdated_specs)
        new_names = self._watched - self._specs.keys() - self._unknown
        more = asked_first(self._unreported, self._watched - self._specs.keys())[:SPECS_PER_LOOK]
        specs = await self._read_specs(new_names.union(outdated_specs, more))
        wanted = self._watched & (self._specs.keys() | specs.keys())
        convert = self._looks - self._converted_at_look >= CONVERSIONS_EVERY
        quotes = await self._read_quotes(
            {*wanted, *conversions(self._specs | specs if convert else specs, self._currency)}
        )
        measured_at = self._clock.now()  # before the read: what is filled meanwhile may be missing in it
        state = await self._session.adapter.account() if figures else None
        if state is not None:
            self._session.check_login(state)
        if state == self._figures and not must_report:
            state = None
        left = [name for name in self._unreported if name not in specs and name not in more]
        told = not left if more else None
        if specs or quotes or state is not None or told:
            await self._send(state, specs, quotes, measured_at, complete=told)
        if convert:  # only after the report: after a failure the next look repeats it
            self._converted_at_look = self._looks
        self._session.outdated_specs.difference_update(outdated_specs)
        self._unreported = left

    async def _read_specs(self, names: Iterable[str]) -> dict[str, SymbolSpec]:
        found: dict[str, SymbolSpec] = {}
        for name in names:
            spec = await self._session.adapter.symbol(name)
            if spec is None:
                self._unknown.add(name)
                self._specs.pop(name, None)  # its broker has renamed it
            else:
                self._unknown.discard(name)
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

    async def _send(
        self,
        state: AccountState | None,
        specs: dict[str, SymbolSpec],
        quotes: dict[str, Quote],
        measured_at: datetime | None = None,
        *,
        complete: bool | None = None,
    ) -> None:
        """Send one report. Its content counts as reported only once the call has succeeded."""
        if state is not None:
            self._note_health(state)
        report = self._head()
        report |= {} if complete is None else {"symbols_complete": complete}
        report |= {} if measured_at is None else {"measured_at": measured_at}
        positions_left_out = len(self._session.left_out)
        if self._left_out:
            report["symbols_left_out"] = self._left_out
        if positions_left_out > self._positions_left_out:
            report["positions_left_out"] = positions_left_out
        if state is not None:
            report |= {
                "currency": limits.cut(state.currency),
                "leverage": state.leverage,
                "mode": state.mode,
                "balance": state.balance,
                "equity": state.equity,
                "margin": state.margin,
                "free_margin": state.free_margin,
            }
            if operations := self._new_operations(state):
                report["balance_operations"] = operations
        names = sorted(specs.keys() | quotes.keys())
        symbols = [encode.symbol_to_json(name, specs.get(name), quotes.get(name)) for name in names]
        again_ms = await self._deliver(report, symbols)
        if state is not None:
            self._figures, self._reported_at_look = state, self._looks
            self._operations_told.update(operation.number for operation in state.balance_operations)
            self._look_again = None if again_ms is None else max(0, again_ms) / 1000
        self._specs |= specs
        self._quotes |= quotes
        self._left_out, self._positions_left_out = 0, positions_left_out

    def _new_operations(self, state: AccountState) -> list[StateReport]:
        """Deposits and withdrawals that these figures contain and that were not reported in this session."""
        return [
            {"number": operation.number, "amount": operation.amount, "at": operation.at, "kind": operation.kind}
            for operation in state.balance_operations
            if operation.number not in self._operations_told
        ]

    def _note_health(self, state: AccountState) -> None:
        if state.trade_allowed:
            self._session.clear_problem("trade_allowed")
        else:
            text = "trading_off: the terminal or the broker does not allow this account to trade; switch trading on"
            self._session.set_problem("trade_allowed", text)

    async def _deliver(self, report: StateReport, symbols: Sequence[StateReport]) -> int | None:
        """Send a report. If it is refused as malformed, send it without symbols, then the symbols by themselves: one
        that the database refuses must not block the others. A report that is refused even without symbols raises."""
        try:
            return await self._sink.report_account_state(report | {"symbols": symbols} if symbols else report)
        except Refused as error:
            if not _about_entry(error) or not symbols:
                raise
            again_ms = await self._sink.report_account_state(report)
            await self._deliver_others(symbols, error)
            return again_ms

    async def _deliver_others(self, symbols: Sequence[StateReport], refused: Refused) -> None:
        """Send symbols that were refused together in halves, until only the malformed ones are left out."""
        if len(symbols) == 1:
            log.error(
                "symbol_refused",
                extra={"account": self._session.account_id, "symbol": symbols[0]["name"], "error": refused.message},
            )
            return
        middle = len(symbols) // 2
        for half in (symbols[:middle], symbols[middle:]):
            try:
                await self._sink.report_account_state(self._head() | {"symbols": half})
            except Refused as error:
                if not _about_entry(error):
                    raise
                await self._deliver_others(half, error)

    def _head(self) -> StateReport:
        session = self._session
        status, error = session.health()
        return {
            "account_id": session.account_id,
            "epoch": session.epoch,
            "session": session.session,
            "status": status,
            "error": None if error is None else limits.cut(error),
            "measured_at": self._clock.now(),
        }


def _about_entry(error: Refused) -> bool:
    return concerns_entry(error.code or f"HTTP {error.status}")
