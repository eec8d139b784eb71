"""Quotes of the paper broker, shared by all books or specific to one, and the currency rates derived from them."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from agent.model import Quote
from agent.paper.specs import REFERENCE_USD, instrument

_SHARED = ""


class Market:
    """The latest quote per symbol.

    A book's own quote takes precedence over the shared one, an exact name over the plain name.
    """

    def __init__(self) -> None:
        self._quotes: dict[str, dict[str, Quote]] = {_SHARED: {}}
        #: the same by plain name: EURUSD.m is found under EURUSD
        self._plain: dict[str, dict[str, Quote]] = {_SHARED: {}}
        #: books whose programs see no quote of a symbol before its next price, with the symbols priced since
        self._withheld: dict[str, set[str]] = {}

    def set(self, prices: Mapping[str, tuple[Decimal, Decimal]], at: datetime, login: str | None = None) -> None:
        """Set prices. ValueError (and nothing is set) unless bid <= ask for all of them. Prices may be below 0."""
        for symbol, (bid, ask) in prices.items():
            if not (bid.is_finite() and ask.is_finite() and bid <= ask):
                raise ValueError(f"{symbol}: bid <= ask does not hold for {bid} and {ask}")
        scope = login or _SHARED
        quotes, plain = self._quotes.setdefault(scope, {}), self._plain.setdefault(scope, {})
        for symbol, (bid, ask) in prices.items():
            quotes[symbol] = plain[instrument(symbol).plain] = Quote(symbol, bid, ask, at)
        for book, priced in self._withheld.items():
            if scope in (book, _SHARED):
                priced.update(prices, (instrument(symbol).plain for symbol in prices))

    def quote(self, login: str, symbol: str) -> Quote | None:
        """The quote that `login` sees for `symbol`, under that name."""
        name = instrument(symbol).plain
        for scope in (login, _SHARED):
            found = self._quotes.get(scope, {}).get(symbol) or self._plain.get(scope, {}).get(name)
            if found is not None:
                return found if found.symbol == symbol else Quote(symbol, found.bid, found.ask, found.at)
        return None

    def withhold(self, login: str) -> None:
        """From now on programs of `login` see no quote of a symbol before its next price, as at a new broker.
        Orders are executed all the same."""
        self._withheld[login] = set()

    def shown(self, login: str, symbol: str) -> Quote | None:
        """The quote that a program of `login` sees."""
        priced = self._withheld.get(login)
        if priced is not None and symbol not in priced and instrument(symbol).plain not in priced:
            return None
        return self.quote(login, symbol)

    def all(self) -> dict[str, dict[str, Quote]]:
        """Every quote by scope ("" = shared), for storing."""
        return self._quotes

    def rate(self, login: str, source: str, target: str) -> Decimal:
        """Units of `target` for one unit of `source`, at mid prices: by a direct pair, otherwise over USD.

        A currency without a quote uses its reference value, an unknown one counts as USD: a paper account must never be
        blocked by a missing quote.
        """
        if source == target:
            return Decimal(1)
        direct = self._pair(login, source, target)
        if direct is not None:
            return direct
        return self._in_usd(login, source) / self._in_usd(login, target)

    def _in_usd(self, login: str, currency: str) -> Decimal:
        if currency == "USD":
            return Decimal(1)
        quoted = self._pair(login, currency, "USD")
        return quoted if quoted is not None else REFERENCE_USD.get(currency, Decimal(1))

    def _pair(self, login: str, base: str, quote: str) -> Decimal | None:
        for scope in (login, _SHARED):
            plain = self._plain.get(scope, {})
            if (found := plain.get(base + quote)) is not None:
                return (found.bid + found.ask) / 2
            if (found := plain.get(quote + base)) is not None:
                return 2 / (found.bid + found.ask)
        return None
