"""The symbols whose quotes convert an account's money: currency pairs, known by their names."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from agent.model import SymbolSpec

#: accounts that are kept in cents of a currency
CENTS: Final = {"USC": "USD", "EUC": "EUR", "GBC": "GBP"}
#: currencies without a direct pair are converted through it
DOLLAR: Final = "USD"
#: the currencies and metals of private.pair_in (supabase/schemas/copier/symbol_name.sql)
CODES: Final = (
    "AUD|CAD|CHF|CNH|CZK|DKK|EUR|GBP|HKD|HUF|ILS|JPY|MXN|NOK|NZD|PLN|RUB|SEK|SGD|THB|TRY|USD|ZAR"
    "|XAU|XAG|XPT|XPD|BTC|ETH|LTC"
)
#: those of them that no money is converted through, unless the account is kept in them
NO_MONEY: Final = frozenset({"XAU", "XAG", "XPT", "XPD", "BTC", "ETH", "LTC"})
PAIR: Final = re.compile(f"({CODES})({CODES})")
NOT_IN_A_CODE: Final = re.compile(r"[^A-Z0-9]")


def conversions(specs: Mapping[str, SymbolSpec], currency: str) -> Iterator[str]:
    """The pairs with which the database converts profits and funds into `currency`.

    These are the pairs with that currency; for a currency without one, its pair with the dollar: a euro account
    converts yen through USDJPY.
    """
    pairs = {name: pair for name, spec in specs.items() if (pair := _pair(name, spec, currency))}
    direct = {code for pair in pairs.values() if currency in pair for code in pair}
    for name, pair in pairs.items():
        if currency in pair or (DOLLAR in pair and not pair <= direct):
            yield name


def _pair(name: str, spec: SymbolSpec, currency: str) -> frozenset[str] | None:
    """The two currencies of a symbol; None: it is no pair of currencies.

    Brokers name base and margin currencies wrongly (AUD for every pair), so they count only if the name agrees.
    """
    letters = NOT_IN_A_CODE.sub("", name.upper())
    stated = (spec.margin_currency.upper(), spec.profit_currency.upper())
    if stated[0] != stated[1] and "".join(stated) in letters:
        return frozenset(stated)
    named = PAIR.search(letters)
    if named is None or named[1] == named[2]:
        return None
    pair = frozenset(named.groups())
    return None if NO_MONEY & pair - {currency} else pair
