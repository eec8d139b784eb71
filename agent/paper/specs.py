"""Instruments of the paper broker, and the usual specification of any symbol name, with or without prefix and
suffix."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Literal, assert_never

from agent.model import SymbolSpec

#: approximate value of one unit of each currency in USD: identifies currency codes, and is the fallback when a book has
#: no quote for a conversion
REFERENCE_USD: Mapping[str, Decimal] = MappingProxyType({
    code: Decimal(rate)
    for code, rate in (
        ("USD", "1"), ("EUR", "1.10"), ("GBP", "1.27"), ("JPY", "0.0067"), ("CHF", "1.12"), ("AUD", "0.66"),
        ("NZD", "0.61"), ("CAD", "0.73"), ("SEK", "0.095"), ("NOK", "0.094"), ("DKK", "0.147"), ("PLN", "0.25"),
        ("HUF", "0.0028"), ("CZK", "0.044"), ("TRY", "0.03"), ("ZAR", "0.054"), ("MXN", "0.055"), ("SGD", "0.74"),
        ("HKD", "0.128"), ("CNH", "0.138"), ("CNY", "0.138"), ("RUB", "0.011"), ("THB", "0.028"), ("ILS", "0.27"),
        ("INR", "0.012"), ("KRW", "0.00073"), ("BRL", "0.18"), ("RON", "0.22"), ("SAR", "0.266"), ("AED", "0.272"),
        ("USC", "0.01"), ("USDT", "1"), ("USDC", "1"),
    )
})  # fmt: skip
_METALS = {"XAU": (100, 2), "XAG": (5000, 3), "XPT": (100, 2), "XPD": (100, 2), "GOLD": (100, 2), "SILVER": (5000, 3)}
_COINS = tuple(
    "BTC ETH LTC BCH XRP ADA SOL DOT DOGE BNB XLM EOS"  # noqa: SIM905
    " LINK UNI AVAX TRX XMR DASH MATIC ATOM ETC NEO ZEC SHIB TON".split()
)
_COIN_QUOTES = ("USDT", "USDC", "USD", "EUR", "GBP", "JPY", "BTC", "ETH")
#: index → currency, usual digits
_INDICES = {
    "US30": ("USD", 2), "DJ30": ("USD", 2), "WS30": ("USD", 2), "DJI": ("USD", 2), "NAS100": ("USD", 2),
    "US100": ("USD", 2), "USTEC": ("USD", 2), "NDX": ("USD", 2), "US500": ("USD", 2), "SPX500": ("USD", 2),
    "SP500": ("USD", 2), "US2000": ("USD", 2), "RUSSELL": ("USD", 2), "GER40": ("EUR", 2), "DE40": ("EUR", 2),
    "GER30": ("EUR", 2), "DE30": ("EUR", 2), "DAX": ("EUR", 2), "UK100": ("GBP", 2), "FTSE": ("GBP", 2),
    "JP225": ("JPY", 0), "JPN225": ("JPY", 0), "NIKKEI": ("JPY", 0), "FRA40": ("EUR", 2), "CAC40": ("EUR", 2),
    "EU50": ("EUR", 2), "EUSTX50": ("EUR", 2), "STOXX50": ("EUR", 2), "ESP35": ("EUR", 2), "SPA35": ("EUR", 2),
    "IT40": ("EUR", 2), "AUS200": ("AUD", 2), "HK50": ("HKD", 2), "HSI": ("HKD", 2), "SWI20": ("CHF", 2),
    "CHINA50": ("USD", 2), "CN50": ("USD", 2), "USDX": ("USD", 3), "DXY": ("USD", 3), "VIX": ("USD", 2),
}  # fmt: skip
#: energy and agricultural commodities → units per lot, digits
_GOODS = {
    "USOIL": (1000, 2), "UKOIL": (1000, 2), "XTIUSD": (1000, 2), "XBRUSD": (1000, 2), "WTI": (1000, 2),
    "BRENT": (1000, 2), "XNGUSD": (10000, 3), "NATGAS": (10000, 3), "NGAS": (10000, 3), "COPPER": (10000, 4),
    "COCOA": (10, 0), "COFFEE": (37500, 2), "SUGAR": (112000, 2), "WHEAT": (5000, 2), "CORN": (5000, 2),
}  # fmt: skip
_FIATS = tuple(code for code in REFERENCE_USD if code not in ("USDT", "USDC"))
_COARSE_QUOTES = {"JPY": 3, "HUF": 3, "RUB": 4, "THB": 3, "KRW": 2, "INR": 4}


def _alternatives(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("goods", re.compile(f"(?P<base>{_alternatives(_GOODS)})")),
    ("metal", re.compile(f"(?P<base>{_alternatives(_METALS)})(?P<quote>{_alternatives(_FIATS)})?")),
    ("coin", re.compile(f"(?P<base>{_alternatives(_COINS)})(?P<quote>{_alternatives(_COIN_QUOTES)})")),
    ("index", re.compile(f"(?P<base>{_alternatives(_INDICES)})(?P<quote>{_alternatives(_FIATS)})?")),
    ("pair", re.compile(f"(?P<base>{_alternatives(_FIATS)})[/_]?(?P<quote>{_alternatives(_FIATS)})")),
)


@dataclass(frozen=True, slots=True)
class Instrument:
    """What a symbol's name means. `plain` is the name without prefix and suffix: the same at every broker."""

    kind: Literal["pair", "metal", "coin", "index", "goods", "share"]
    plain: str
    base: str
    quote: str


_KINDS: Mapping[str, Literal["pair", "metal", "coin", "index", "goods"]] = {
    "pair": "pair", "metal": "metal", "coin": "coin", "index": "index", "goods": "goods",
}  # fmt: skip
_known: dict[str, Instrument] = {}


def instrument(name: str) -> Instrument:
    """Recognise a symbol name in any case, with any prefix or suffix. Unrecognised: a share, quoted in USD."""
    found = _known.get(name)
    if found is None:
        found = _known[name] = _recognise(name.upper())
    return found


def _recognise(name: str) -> Instrument:
    best: tuple[int, int, Instrument] | None = None
    for kind, pattern in _PATTERNS:
        match = pattern.search(name)
        if match is None:
            continue
        groups = match.groupdict()
        base, quote = groups["base"], groups.get("quote")
        if kind == "pair" and base == quote:
            continue
        candidate = Instrument(_KINDS[kind], _plain(kind, base, quote), base, quote or _usual_quote(kind, base))
        # the leftmost match determines the instrument; of matches at the same place, the longest
        rank = (match.start(), -(match.end() - match.start()))
        if best is None or rank < best[:2]:
            best = (*rank, candidate)
    if best is not None:
        return best[2]
    plain = re.split(r"[.\-_#]", name.lstrip("#._-"))[0] or name
    return Instrument("share", plain, plain, "USD")


def _plain(kind: str, base: str, quote: str | None) -> str:
    aliases = {"GOLD": "XAU", "SILVER": "XAG"}
    if kind == "metal":
        return aliases.get(base, base) + (quote or "USD")
    return base if kind in ("index", "goods") else base + (quote or "")


def _usual_quote(kind: str, base: str) -> str:
    return _INDICES[base][0] if kind == "index" else "USD"


def infer_spec(name: str, digits: int | None = None) -> SymbolSpec:
    """The usual specification of a symbol; `digits` (of its prices) overrides the usual number.

    Lots range from 0.01 in steps of 0.01 for everything, so that the volumes of any statement are valid.
    """
    thing = instrument(name)
    size, usual, most = _usual(thing)
    places = usual if digits is None else digits
    return SymbolSpec(
        name=name,
        contract_size=Decimal(size),
        digits=places,
        tick_size=Decimal(1).scaleb(-places),
        profit_currency=thing.quote,
        margin_currency=thing.base if thing.kind == "pair" else thing.quote,
        lots_min=Decimal("0.01"),
        lots_max=Decimal(most),
        lots_step=Decimal("0.01"),
    )


def _usual(thing: Instrument) -> tuple[int, int, int]:
    """Contract size, digits and maximum lots per order."""
    match thing.kind:
        case "pair":
            return 100_000, _COARSE_QUOTES.get(thing.quote, 5), 100
        case "metal":
            return *_METALS[thing.base], 100
        case "coin":
            return 1, 2 if thing.base in ("BTC", "ETH") else 4, 100
        case "index":
            return 1, _INDICES[thing.base][1], 250
        case "goods":
            return *_GOODS[thing.base], 100
        case "share":
            return 1, 2, 1000
        case _:
            assert_never(thing.kind)


#: symbols of every book that is opened without its own: name → (first bid, first ask) of the feed
DEFAULT_PRICES: Mapping[str, tuple[Decimal, Decimal]] = MappingProxyType(
    {
        "EURUSD": (Decimal("1.10000"), Decimal("1.10010")),
        "GBPUSD": (Decimal("1.27000"), Decimal("1.27012")),
        "USDJPY": (Decimal("150.000"), Decimal("150.012")),
        "XAUUSD": (Decimal("2400.00"), Decimal("2400.25")),
        "US30": (Decimal("40000.00"), Decimal("40002.00")),
        "NAS100": (Decimal("19000.00"), Decimal("19001.50")),
        "BTCUSD": (Decimal("60000.00"), Decimal("60015.00")),
    }
)


def default_specs() -> tuple[SymbolSpec, ...]:
    """EURUSD GBPUSD USDJPY XAUUSD US30 NAS100 BTCUSD with their usual specifications."""
    return tuple(infer_spec(name) for name in DEFAULT_PRICES)
