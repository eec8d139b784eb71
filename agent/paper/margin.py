"""What a book is worth and what it may still open.

Profit = (close − open) × lots × contract size, in the profit currency. Margin = lots × contract size / leverage in the
margin currency for currency pairs; × open price for everything whose margin currency is its profit currency. Of opposite
positions in one symbol only the larger side needs margin.
"""

from collections import defaultdict
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal

from agent.model import AccountState, Position, Quote, SymbolSpec
from agent.paper.book import ZERO, Book
from agent.paper.market import Market


def money(book: Book, amount: Decimal) -> Decimal:
    """`amount` rounded to the account's smallest unit."""
    return amount.quantize(book.cents, ROUND_HALF_UP)


def profit_of(book: Book, market: Market, position: Position, price: Decimal, lots: Decimal) -> Decimal:
    """What closing `lots` of `position` at `price` earns, in the account's currency."""
    spec = book.symbols[position.symbol]
    points = price - position.price if position.side == "buy" else position.price - price
    earned = points * lots * spec.contract_size
    return money(book, earned * market.rate(book.login, spec.profit_currency, book.currency))


def closing_price(position: Position, quote: Quote) -> Decimal:
    return quote.bid if position.side == "buy" else quote.ask


def floating_profit(book: Book, market: Market, position: Position) -> Decimal:
    quote = market.quote(book.login, position.symbol)
    return ZERO if quote is None else profit_of(book, market, position, closing_price(position, quote), position.lots)


def margin_of(book: Book, market: Market, spec: SymbolSpec, lots: Decimal, price: Decimal) -> Decimal:
    """Margin of one position by itself, in the account's currency, not rounded."""
    needed = lots * spec.contract_size / book.leverage
    if spec.margin_currency == spec.profit_currency:
        needed *= price
    return needed * market.rate(book.login, spec.margin_currency, book.currency)


def margin(book: Book, market: Market, positions: Iterable[Position]) -> Decimal:
    """Margin of all `positions` together, in the account's currency."""
    sides: defaultdict[str, dict[str, Decimal]] = defaultdict(lambda: {"buy": ZERO, "sell": ZERO})
    for position in positions:
        spec = book.symbols[position.symbol]
        sides[position.symbol][position.side] += margin_of(book, market, spec, position.lots, position.price)
    return money(book, sum((max(both.values()) for both in sides.values()), ZERO))


def state(book: Book, market: Market, server: str) -> AccountState:
    """The account's figures at the present quotes."""
    floating = sum((floating_profit(book, market, position) for position in book.positions.values()), ZERO)
    used = margin(book, market, book.positions.values())
    equity = book.balance + floating
    return AccountState(
        login=book.login, server=server, currency=book.currency, mode=book.mode, leverage=book.leverage,
        balance=book.balance, equity=equity, margin=used, free_margin=equity - used,
    )  # fmt: skip
