"""Which quotes a book and its programs see."""

from datetime import UTC, datetime
from decimal import Decimal

from agent.paper.market import Market

AT = datetime(2026, 12, 1, tzinfo=UTC)
PRICES = {"EURUSD": (Decimal("1.1"), Decimal("1.2")), "ZZTOP": (Decimal(50), Decimal(51))}


def test_withheld_quotes_are_shown_from_their_next_price_on() -> None:
    market = Market()
    market.set(PRICES, AT)
    market.withhold("1")
    assert (market.shown("1", "EURUSD"), market.shown("1", "ZZTOP")) == (None, None)
    assert market.quote("1", "ZZTOP") == market.shown("2", "ZZTOP")
    market.set({"ZZTOP": PRICES["ZZTOP"]}, AT, "2")
    assert market.shown("1", "ZZTOP") is None
    market.set({"ZZTOP": PRICES["ZZTOP"]}, AT, "1")
    market.set({"EURUSD": PRICES["EURUSD"]}, AT)
    assert market.shown("1", "ZZTOP") == market.quote("1", "ZZTOP")
    assert market.shown("1", "EURUSD.m") == market.quote("1", "EURUSD.m")
    assert market.shown("1", "GBPUSD") is None
