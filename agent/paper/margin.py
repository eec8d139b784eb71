"""The equity of a book and its free margin.

Profit = (close − open) × lots × contract size, in the profit currency. Margin = lots × contract size / leverage in the
margin currency for currency pairs; × open price for symbols whose margin currency is their profit currency. Of opposite
positions in one symbol, only the larger side needs margin. Totals are rounded once, at the end.
"""

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from types import MappingProxyType

from agent.model import AccountState, BalanceOperation, Position, Quote, Side, SymbolSpec
from agent.paper.book import ZERO, Book, Exposure
from agent.paper.market import Market

#: how many of the latest deposits and withdrawals an account's figures tell
OPERATIONS_TOLD = 100

_UNCHANGED: Mapping[str, Mapping[Side, Exposure]] = MappingProxyType({})


def money(book: Book, amount: Decimal) -> Decimal:
    """`amount` rounded to the account's smallest unit."""
    return amount.quantize(book.cents, ROUND_HALF_UP)


def profit_of(book: Book, market: Market, position: Position, price: Decimal, lots: Decimal) -> Decimal:
    """The profit from closing `lots` of `position` at `price`, in the account's currency, rounded."""
    spec = book.symbols[position.symbol]
    points = price - position.price if position.side == "buy" else position.price - price
    earned = points * lots * spec.contract_size
    return money(book, earned * market.rate(book.login, spec.profit_currency, book.currency))


def closing_price(position: Position, quote: Quote) -> Decimal:
    return quote.bid if position.side == "buy" else quote.ask


def floating_profit(book: Book, market: Market, position: Position) -> Decimal:
    """The profit from closing one position now; 0 while its symbol has no quote."""
    quote = market.quote(book.login, position.symbol)
    return ZERO if quote is None else profit_of(book, market, position, closing_price(position, quote), position.lots)


def equity(book: Book, market: Market) -> Decimal:
    """Balance plus all floating profit, in the account's currency."""
    floating = ZERO
    for symbol, sides in book.exposure.items():
        quote = market.quote(book.login, symbol)
        if quote is None:
            continue
        spec = book.symbols[symbol]
        buy, sell = sides["buy"], sides["sell"]
        points = quote.bid * buy.lots - buy.value + sell.value - quote.ask * sell.lots
        floating += points * spec.contract_size * market.rate(book.login, spec.profit_currency, book.currency)
    return book.balance + money(book, floating)


def margin(book: Book, market: Market, changed: Mapping[str, Mapping[Side, Exposure]] = _UNCHANGED) -> Decimal:
    """Margin of all positions, with the symbols in `changed` replaced by these exposures."""
    held = {**book.exposure, **changed} if changed else book.exposure
    total = ZERO
    for symbol, sides in held.items():
        spec = book.symbols[symbol]
        rate = market.rate(book.login, spec.margin_currency, book.currency)
        total += max(_margin_base(spec, side) for side in sides.values()) * rate
    return money(book, total / book.leverage)


def _margin_base(spec: SymbolSpec, exposure: Exposure) -> Decimal:
    in_price = spec.margin_currency == spec.profit_currency
    return abs(exposure.value if in_price else exposure.lots) * spec.contract_size


def state(book: Book, market: Market, server: str) -> AccountState:
    """The account's figures at the current quotes."""
    used, worth = margin(book, market), equity(book, market)
    return AccountState(
        login=book.login, server=server, currency=book.currency, mode=book.mode, leverage=book.leverage,
        balance=book.balance, equity=worth, margin=used, free_margin=worth - used,
        balance_operations=tuple(
            BalanceOperation(str(deal.number), deal.profit, deal.at)
            for deal in book.operations[-OPERATIONS_TOLD:] if deal.profit
        ),
    )  # fmt: skip
