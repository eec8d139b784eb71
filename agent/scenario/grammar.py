"""The grammar of a scenario file: `read_scenario` returns a `Scenario`, or reports file, line and what was expected."""

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import cast

from agent.model import Mode
from agent.paper.profile import Profile
from agent.scenario.node import GrammarError, Node, read_document
from agent.scenario.script import Account, Copier, Price, Scenario, Step, Symbol, Value
from agent.scenario.steps import RESERVED, Names, read_step

__all__ = ["DEFAULT_SYMBOLS", "GrammarError", "read_scenario"]

#: the symbols of every account unless the file says otherwise
DEFAULT_SYMBOLS = ("EURUSD", "GBPUSD", "USDJPY", "XAUUSD", "US30", "NAS100", "BTCUSD")
PLATFORMS = ("paper", "mt5", "mt4", "ctrader")
SPEC_NUMBERS = ("lots_min", "lots_step", "lots_max", "contract_size", "tick_size")
SPEC_WHOLE = ("digits", "stops_level_points", "freeze_level_points")
SPEC_KEYS = (*SPEC_NUMBERS, *SPEC_WHOLE, "profit_currency", "margin_currency", "trade_mode", "allow_negative")
ACCOUNT_KEYS = ("platform", "currency", "balance", "leverage", "mode", "vps", "broker", "fifo", "hedging_allowed",
    "same_numbers", "first_quote")  # fmt: skip
TRADE_MODES = ("full", "long_only", "short_only", "close_only", "disabled")
TOP = ("name", "covers", "accounts", "symbols", "prices", "copiers", "steps")


def read_scenario(path: Path) -> Scenario:
    """Read one file. Raises `GrammarError` (with file:line) for a file that is invalid or cannot be read."""
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise GrammarError(f"{path}:1", "the file is not UTF-8 text") from None
    except OSError as error:
        raise GrammarError(str(path), f"the file cannot be read: {error.strerror}") from None
    return parse_scenario(str(path), content)


def parse_scenario(path: str, content: str) -> Scenario:
    document = read_document(path, content)
    top = document.entries("a scenario", TOP)
    for key in ("accounts", "steps"):
        if key not in top:
            raise document.fault(f"a scenario needs {key}:")
    accounts = _accounts(top["accounts"])
    symbols = tuple(_symbol(key, node, accounts) for key, node in _optional(top, "symbols").items())
    vpses = frozenset(account.vps for account in accounts.values() if account.vps is not None)
    names = Names(
        accounts=frozenset(accounts),
        symbols=_offered(accounts, symbols),
        negative=_negative(accounts, symbols),
        vpses=vpses,
    )
    copiers = tuple(_copier(node, accounts) for node in top["copiers"].items("copiers")) if "copiers" in top else ()
    names.copiers = len(copiers)
    prices = tuple(_price(key, node, names) for key, node in _optional(top, "prices").items())
    return Scenario(
        path=path,
        name=top["name"].text("name") if "name" in top else Path(path).stem,
        covers=tuple(row.text("a row of docs/scenarios.md") for row in top["covers"].items("covers"))
        if "covers" in top
        else (),
        accounts=accounts,
        symbols=symbols,
        prices=prices,
        copiers=copiers,
        steps=tuple(_steps(top["steps"], names)),
    )


def _optional(top: Mapping[str, Node], key: str) -> dict[str, Node]:
    return {} if key not in top or top[key].is_null() else top[key].entries(key)


def _accounts(node: Node) -> dict[str, Account]:
    found: dict[str, Account] = {}
    for name, entry in node.entries("accounts").items():
        if name in RESERVED:
            raise entry.fault(f"{name!r} cannot be the name of an account: it is the name of a step")
        if "." in name:
            raise entry.fault(f"the account name {name!r} may not contain a dot")
        found[name] = _account(name, entry)
    if not found:
        raise node.fault("a scenario needs at least one account")
    return found


def _account(name: str, node: Node) -> Account:
    keys = {} if node.is_null() else node.entries(f"account {name}", ACCOUNT_KEYS)
    account = Account(name=name, line=node.line)
    return Account(
        name=name,
        line=node.line,
        platform=keys["platform"].choice("platform", PLATFORMS) if "platform" in keys else account.platform,
        currency=_currency(keys["currency"]) if "currency" in keys else account.currency,
        balance=keys["balance"].number("balance", least=Decimal(0)) if "balance" in keys else account.balance,
        leverage=keys["leverage"].whole("leverage", least=1) if "leverage" in keys else account.leverage,
        mode=cast("Mode", keys["mode"].choice("mode", ("hedging", "netting"))) if "mode" in keys else account.mode,
        vps=keys["vps"].text("vps") if "vps" in keys else None,
        broker=_profile(keys),
        quoted_at_first="first_quote" not in keys or keys["first_quote"].choice("first_quote", ("none",)) != "none",
    )


def _profile(account: Mapping[str, Node]) -> Profile | None:
    """The properties of the account's broker that a script may set; None: the usual ones."""
    if not {"broker", "fifo", "hedging_allowed", "same_numbers"} & account.keys():
        return None
    known = ("levels_on_open", "timed_orders", "retickets", "no_hedging")
    keys = account["broker"].entries("broker", known) if "broker" in account else {}
    said = {name: _switch(name, value) for name, value in keys.items()}
    for name in ("fifo", "same_numbers"):
        if name in account:
            said[name] = _switch(name, account[name])
    if "hedging_allowed" in account:
        if "no_hedging" in said:
            raise account["hedging_allowed"].fault("hedging_allowed and broker: {no_hedging: …} say the same: keep one")
        said["no_hedging"] = not _switch("hedging_allowed", account["hedging_allowed"])
    usual = Profile()
    return Profile(
        levels_on_open=said.get("levels_on_open", usual.levels_on_open),
        timed_orders=said.get("timed_orders", usual.timed_orders),
        retickets=said.get("retickets", usual.retickets),
        no_hedging=said.get("no_hedging", usual.no_hedging),
        fifo=said.get("fifo", usual.fifo),
        same_numbers=said.get("same_numbers", usual.same_numbers),
    )


def _switch(name: str, node: Node) -> bool:
    return node.choice(name, ("true", "false")) == "true"


def _currency(node: Node) -> str:
    value = node.text("a currency")
    if len(value) != 3 or not value.isascii() or not value.isupper():
        raise node.fault(f"{value!r} is not a currency such as USD")
    return value


def _owner(key: str, accounts: Mapping[str, Account] | frozenset[str]) -> tuple[str | None, str]:
    """`F.EURUSD.m` → F, EURUSD.m when F is an account; `EURUSD` → every account's."""
    account, dot, rest = key.partition(".")
    return (account, rest) if dot and rest and account in accounts else (None, key)


def _symbol(key: str, node: Node, accounts: Mapping[str, Account]) -> Symbol:
    account, name = _owner(key, accounts)
    prefix, _, rest = key.partition(".")
    if account is None and any(plain in rest for plain in DEFAULT_SYMBOLS):
        raise node.fault(f"there is no account {prefix!r}; an account's own symbol is written ACCOUNT.SYMBOL")
    spec: dict[str, str | int | bool | Decimal] = {}
    for field, value in ({} if node.is_null() else node.entries(f"symbol {key}", SPEC_KEYS)).items():
        match field:
            case "digits" | "stops_level_points" | "freeze_level_points":
                spec[field] = value.whole(field, least=0)
            case "trade_mode":
                spec[field] = value.choice(field, TRADE_MODES)
            case "allow_negative":
                spec[field] = _switch(field, value)
            case "profit_currency" | "margin_currency":
                spec[field] = _currency(value)
            case _:
                spec[field] = value.number(field, above=Decimal(0))
    least, most = spec.get("lots_min"), spec.get("lots_max")
    if isinstance(least, Decimal) and isinstance(most, Decimal) and least > most:
        raise node.fault(f"lots_min of {key} is {least}, above its lots_max of {most}")
    return Symbol(account=account, name=name, spec=spec, line=node.line)


def _offered(accounts: Mapping[str, Account], symbols: tuple[Symbol, ...]) -> dict[str, frozenset[str]]:
    """The symbols of each account: the defaults, except those that the file renames with a suffix, and the file's
    own."""
    offered: dict[str, frozenset[str]] = {}
    for account in accounts:
        own = {symbol.name for symbol in symbols if symbol.account in (None, account)}
        renamed = {plain for plain in DEFAULT_SYMBOLS if any(plain in name and plain != name for name in own)}
        offered[account] = frozenset((set(DEFAULT_SYMBOLS) - renamed) | own)
    return offered


def _negative(accounts: Mapping[str, Account], symbols: tuple[Symbol, ...]) -> dict[str, frozenset[str]]:
    """The symbols of each account whose prices may be 0 or below."""
    said = [symbol for symbol in symbols if symbol.spec.get("allow_negative")]
    return {name: frozenset(one.name for one in said if one.account in (None, name)) for name in accounts}


def _price(key: str, node: Node, names: Names) -> Price:
    account, symbol = _owner(key, names.accounts)
    offering = (account,) if account is not None else tuple(names.accounts)
    if not any(symbol in names.symbols[name] for name in offering):
        raise node.fault(f"no account offers the symbol {symbol!r}; name it under symbols:")
    pair = node.items(f"the price of {key}")
    if len(pair) != 2:
        raise node.fault(f"the price of {key} must be [bid, ask]")
    above = None if any(symbol in names.negative[name] for name in offering) else Decimal(0)
    bid, ask = (item.number("a price", above=above) for item in pair)
    if ask < bid:
        raise node.fault(f"the ask of {key} is below its bid; write [bid, ask]")
    return Price(account=account, symbol=symbol, bid=bid, ask=ask, line=node.line)


def _copier(node: Node, accounts: Mapping[str, Account]) -> Copier:
    keys = node.entries("a copier")
    ends: dict[str, str] = {}
    for end in ("master", "follower"):
        if end not in keys:
            raise node.fault(f"a copier needs {end}:")
        ends[end] = keys.pop(end).choice(end, accounts)
    if ends["master"] == ends["follower"]:
        raise node.fault("a copier's follower must be another account than its master")
    return Copier(**ends, columns={name: read_value(name, value) for name, value in keys.items()}, line=node.line)


def read_value(name: str, node: Node) -> Value:
    """A column's value: true/false, null, an exact number, text, or a list of texts."""
    if node.is_null():
        return None
    if node.is_list():
        return tuple(item.text(f"an item of {name}") for item in node.items(name))
    text = node.text(name)
    if node.is_plain() and text in ("true", "false"):
        return text == "true"
    try:
        return node.number(name)
    except GrammarError:
        return text


def _steps(node: Node, names: Names) -> list[Step]:
    return [
        read_step(step, names, read_price=lambda key, value: _price(key, value, names), read_value=read_value)
        for step in node.items("steps")
    ]
