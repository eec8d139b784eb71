"""The broker's checks before an execution. Each check raises `Refusal` and changes nothing."""

from datetime import datetime
from decimal import Decimal

from agent.model import OrderType, Quote, Side, SymbolSpec
from agent.paper.book import Book
from agent.paper.market import Market
from agent.paper.profile import Profile
from agent.paper.refusals import Refusal


def symbol_of(book: Book, name: str) -> SymbolSpec:
    spec = book.symbols.get(name)
    if spec is None:
        raise Refusal("unknown_symbol", name)
    return spec


def quote_of(book: Book, market: Market, name: str) -> Quote:
    quote = market.quote(book.login, name)
    if quote is None:
        raise Refusal("no_quotes", name)
    return quote


def check_volume(spec: SymbolSpec, lots: Decimal | None) -> Decimal:
    """Check the volume of an opening order."""
    if lots is None or not lots.is_finite() or not spec.lots_min <= lots <= spec.lots_max or lots % spec.lots_step:
        raise Refusal("invalid_volume", f"{lots} lots; {spec.lots_min} to {spec.lots_max} in steps of {spec.lots_step}")
    return lots


def check_closing_volume(spec: SymbolSpec, lots: Decimal | None, held: Decimal) -> Decimal:
    """Check the volume of a close: None or the whole volume is always valid, a part must be a multiple of the step."""
    if lots is None or lots == held:
        return held
    if not lots.is_finite() or not spec.lots_min <= lots < held or lots % spec.lots_step:
        raise Refusal("invalid_volume", f"{lots} lots cannot be closed of {held} lots")
    return lots


def check_opening_allowed(spec: SymbolSpec, side: Side) -> None:
    check_trading_allowed(spec)
    if spec.trade_mode == "close_only":
        raise Refusal("close_only", spec.name)
    if spec.trade_mode == "long_only" and side == "sell":
        raise Refusal("long_only", spec.name)
    if spec.trade_mode == "short_only" and side == "buy":
        raise Refusal("short_only", spec.name)


def check_trading_allowed(spec: SymbolSpec) -> None:
    if spec.trade_mode == "disabled":
        raise Refusal("trade_disabled", spec.name)


def check_levels(spec: SymbolSpec, side: Side, price: Decimal, sl: Decimal | None, tp: Decimal | None) -> None:
    """Levels must lie on the tick grid, on the correct side of `price`, and at least the stops level away."""
    distance = spec.stops_level_points * _point(spec)
    for level, below in ((sl, side == "buy"), (tp, side == "sell")):
        if level is None:
            continue
        away = price - level if below else level - price
        if not _is_price(spec, level) or away <= 0 or away < distance or level % spec.tick_size:
            raise Refusal("invalid_stops", f"{level} for a {side} at {price}")


def check_not_frozen(spec: SymbolSpec, price: Decimal, *changes: tuple[Decimal | None, Decimal | None]) -> None:
    """A level that is within the freeze level of the price cannot be changed."""
    for before, after in changes:
        if before != after and before is not None and abs(price - before) < spec.freeze_level_points * _point(spec):
            raise Refusal("invalid_stops", f"{before} is frozen with the price at {price}")


def check_trigger(spec: SymbolSpec, side: Side, order_type: OrderType, price: Decimal | None, quote: Quote) -> Decimal:
    """Check the price of a pending order: on the tick grid, on the correct side, at least the stops level away."""
    if order_type == "market" or price is None or not _is_price(spec, price) or price % spec.tick_size:
        raise Refusal("invalid_price", str(price))
    market = quote.ask if side == "buy" else quote.bid
    away = market - price if (side == "buy") == (order_type == "limit") else price - market
    if away <= 0 or away < spec.stops_level_points * _point(spec):
        raise Refusal("invalid_price", f"{side} {order_type} at {price} while the market is at {market}")
    return price


def check_expiry(expires_at: datetime | None, now: datetime, profile: Profile) -> None:
    if expires_at is not None and not profile.timed_orders:
        raise Refusal("invalid_expiration", "this broker accepts only orders without an expiry (good till cancelled)")
    if expires_at is not None and expires_at <= now:
        raise Refusal("invalid_expiration", expires_at.isoformat())


def _is_price(spec: SymbolSpec, price: Decimal) -> bool:
    return price.is_finite() and (price > 0 or spec.allow_negative)


def _point(spec: SymbolSpec) -> Decimal:
    return Decimal(1).scaleb(-spec.digits)
