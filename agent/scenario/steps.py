"""The steps of a scenario: each is a mapping with exactly one key."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, cast, get_args

from agent.model import OrderType, Side
from agent.paper.broker import HALF
from agent.paper.records import OrderFault, SnapshotFault
from agent.scenario.node import Node
from agent.scenario.script import (
    Action,
    Cancel,
    ChangeCopier,
    Close,
    CloseBy,
    Comment,
    Drop,
    ExpectBook,
    ExpectDrift,
    ExpectReasons,
    ExpectSent,
    FailOrders,
    FailSnapshots,
    Holding,
    Modify,
    MoveMoney,
    Open,
    Place,
    Price,
    Protect,
    Removal,
    RemoveCopier,
    Rename,
    Replay,
    Resync,
    SetPrices,
    SetTrading,
    Step,
    Value,
)

#: keys of steps that are not the name of an account
RESERVED = (
    *("price", "balance", "copier", "protection", "trading", "resync", "fault", "drop", "replay"),
    *("expect", "expect_orders", "expect_reasons", "expect_drift", "expect_sent"),
)
PENDING = ("buy_limit", "sell_limit", "buy_stop", "sell_stop")
SIDES = ("buy", "sell")
ZERO = Decimal(0)


@dataclass(slots=True)
class Names:
    """Names that are known so far: accounts, the symbols of each, the number of copiers, each account's aliases
    (`as:`)."""

    accounts: frozenset[str]
    symbols: Mapping[str, frozenset[str]]
    #: of these, the symbols whose prices may be 0 or below
    negative: Mapping[str, frozenset[str]]
    #: VPS names of accounts; an account without `vps` uses its own name
    vpses: frozenset[str] = frozenset()
    copiers: int = 0
    aliases: dict[str, set[str]] = field(default_factory=dict)

    def least_price(self, account: str, symbol: str | None = None) -> Decimal | None:
        """What a price or level must be above; None: nothing. Without a symbol: any that the account trades."""
        negative = self.negative.get(account, frozenset())
        return None if (negative if symbol is None else symbol in negative) else ZERO

    def learn(self, account: str, alias: str | None) -> None:
        if alias is not None:
            self.aliases.setdefault(account, set()).add(alias)


def read_step(
    node: Node, names: Names, *, read_price: Callable[[str, Node], Price], read_value: Callable[[str, Node], Value]
) -> Step:
    """Read one step. Raises `GrammarError`."""
    entries = node.entries("a step", (*names.accounts, *RESERVED))
    if len(entries) != 1:
        raise node.fault("a step is one mapping with one key, like {M: {…}} or {expect: {…}}")
    [(key, body)] = entries.items()
    if key in READERS:
        return READERS[key](body, names)
    match key:
        case "price":
            prices = tuple(read_price(name, value) for name, value in body.entries("price").items())
            return SetPrices(prices=prices, line=node.line)
        case "copier":
            return _change_copier(body, names, read_value)
        case "protection":
            return _protect(body, names, read_value)
        case _ if key in RESERVED:
            return _expectation(key, body, names, node.line)
        case _:
            return _action(key, body, names)


def _set_trading(node: Node, _: Names) -> SetTrading:
    state = cast("Literal['on', 'monitor', 'off']", node.choice("trading", ("on", "monitor", "off")))
    return SetTrading(state=state, line=node.line)


def _replay(node: Node, names: Names) -> Replay:
    keys = node.entries("replay", ("events", "account"))
    events = _need(node, keys, "events", "replay").whole("events", least=1)
    account = keys["account"].choice("account", names.accounts) if "account" in keys else None
    if account is None and not names.copiers:
        raise node.fault("replay without account: means the master of copier 0, but the file has no copier")
    return Replay(events=events, account=account, line=node.line)


def _expectation(key: str, body: Node, names: Names, line: int) -> Step:
    match key:
        case "expect" | "expect_orders":
            return _expect_book(key, body, names)
        case "expect_reasons":
            counts = {
                account: {
                    reason: count.whole(f"the count of {reason}", least=0)
                    for reason, count in value.entries(account).items()
                }
                for account, value in body.entries(key, names.accounts).items()
            }
            return ExpectReasons(counts=counts, line=line)
        case "expect_drift":
            keys = body.entries(key)
            index = _number(_need(body, keys, "copier", key), "copier", names)
            shown = {
                reason: n.whole(f"the count of {reason}", least=0) for reason, n in keys.items() if reason != "copier"
            }
            return ExpectDrift(index=index, counts=shown, line=line)
        case _:
            sent = {account: n.whole(account, least=0) for account, n in body.entries(key, names.accounts).items()}
            return ExpectSent(counts=sent, line=line)


def _move_money(node: Node, names: Names) -> MoveMoney:
    amounts = {
        account: value.number(f"the amount of {account}")
        for account, value in node.entries("balance", names.accounts).items()
    }
    if not amounts:
        raise node.fault("balance needs an account and an amount, like {F: -600} for a withdrawal")
    if nothing := [account for account, amount in amounts.items() if amount == 0]:
        raise node.fault(f"the amount of {nothing[0]} is 0; write more than 0 for a deposit, less for a withdrawal")
    return MoveMoney(amounts=amounts, line=node.line)


def _need(node: Node, keys: Mapping[str, Node], key: str, what: str) -> Node:
    if key not in keys:
        raise node.fault(f"{what} needs {key}:")
    return keys[key]


VERBS: Mapping[str, tuple[str, ...]] = {
    "open": ("symbol", "lots", "sl", "tp", "as"),
    "order": ("symbol", "lots", "price", "sl", "tp", "expires", "as"),
    "close": ("lots",),
    "modify": ("sl", "tp", "price"),
    "cancel": (),
    "close_by": ("with",),
    "text": (),
    "rename": (),
}


def _action(account: str, node: Node, names: Names) -> Action | Rename:
    every = dict.fromkeys(key for verb, rest in VERBS.items() for key in (verb, *rest))
    keys = node.entries(f"a step of {account}", every)
    verbs = [verb for verb in VERBS if verb in keys]
    if len(verbs) != 1:
        raise node.fault(f"a step of {account} must contain one of {', '.join(VERBS)}")
    verb = verbs[0]
    if extra := [key for key in keys if key != verb and key not in VERBS[verb]]:
        raise keys[extra[0]].fault(
            f"{verb} has no key {extra[0]!r}; the known keys are {', '.join(VERBS[verb]) or 'none'}"
        )
    match verb:
        case "open" | "order":
            return _entry(account, verb, node, keys, names)
        case "close":
            lots = keys["lots"].number("lots", above=ZERO) if "lots" in keys else None
            return Close(account=account, target=_target(account, keys[verb], names), lots=lots, line=node.line)
        case "modify":
            if len(keys) == 1:
                raise node.fault("modify needs sl:, tp: or price:")
            target = _target(account, keys[verb], names)
            price = keys["price"].number("price", above=names.least_price(account)) if "price" in keys else None
            return Modify(
                account=account,
                target=target,
                price=price,
                sl=_level(keys, "sl", names.least_price(account)),
                tp=_level(keys, "tp", names.least_price(account)),
                line=node.line,
            )
        case "text":
            return Comment(account=account, text=keys[verb].text("text"), line=node.line)
        case "rename":
            return _rename(account, keys[verb], names)
        case "cancel":
            return Cancel(account=account, target=_target(account, keys[verb], names), line=node.line)
        case _:
            other = _target(account, _need(node, keys, "with", verb), names)
            return CloseBy(account=account, target=_target(account, keys[verb], names), other=other, line=node.line)


def _rename(account: str, node: Node, names: Names) -> Rename:
    renamed = {old: new.text(f"the new name of {old}") for old, new in node.entries("rename").items()}
    if not renamed:
        raise node.fault("rename needs an old and a new name, like {EURUSD: EURUSD.r}")
    for old, new in renamed.items():
        if old not in names.symbols[account]:
            raise node.fault(f"{account} does not offer the symbol {old!r}, so it cannot be renamed")
        if new in names.symbols[account]:
            raise node.fault(f"{account} offers the symbol {new!r} already, so {old!r} cannot take its name")
    kept = [name for name in names.symbols[account] if name not in renamed]
    names.symbols = {**names.symbols, account: frozenset((*kept, *renamed.values()))}
    return Rename(account=account, names=renamed, line=node.line)


def _entry(account: str, verb: str, node: Node, keys: Mapping[str, Node], names: Names) -> Open | Place:
    symbol = _need(node, keys, "symbol", verb)
    name = symbol.text("symbol")
    if name not in names.symbols[account]:
        raise symbol.fault(f"{account} does not offer the symbol {name!r}; name it under symbols: as {account}.{name}")
    lots = _need(node, keys, "lots", verb).number("lots", above=ZERO)
    alias = keys["as"].text("as") if "as" in keys else None
    names.learn(account, alias)
    sl, tp = (_level(keys, key, names.least_price(account, name)) for key in ("sl", "tp"))
    if verb == "open":
        side = cast("Side", keys[verb].choice("open", SIDES))
        return Open(account=account, side=side, symbol=name, lots=lots, sl=sl, tp=tp, alias=alias, line=node.line)
    kind = keys[verb].choice("order", PENDING)
    price = _need(node, keys, "price", verb).number("price", above=names.least_price(account, name))
    pending_side, order_type = kind.split("_")
    return Place(
        account=account,
        side=cast("Side", pending_side),
        order_type=cast("OrderType", order_type),
        symbol=name,
        lots=lots,
        price=price,
        sl=sl,
        tp=tp,
        expires_s=keys["expires"].seconds("expires") if "expires" in keys else None,
        alias=alias,
        line=node.line,
    )


def _level(keys: Mapping[str, Node], key: str, least: Decimal | None) -> Decimal | None:
    """0 (or null) means "no level"; a key that is left out leaves the level open."""
    if key not in keys:
        return None
    return ZERO if keys[key].is_null() else keys[key].number(key, least=least)


def _target(account: str, node: Node, names: Names) -> str:
    value = node.text("what it is about")
    if value in names.aliases.get(account, ()) or value in names.symbols[account]:
        return value
    known = sorted(names.aliases.get(account, ()))
    raise node.fault(
        f"{account} has no {value!r}; use a name that an earlier step gave with as: ({', '.join(known) or 'none'}),"
        f" or a symbol"
    )


def _number(node: Node, key: str, names: Names) -> int:
    """The copier of the file that is meant."""
    index = node.whole(key, least=0)
    if index >= names.copiers:
        raise node.fault(f"there is no copier {index}; the file has {names.copiers}, counted from 0")
    return index


def _change_copier(node: Node, names: Names, read_value: Callable[[str, Node], Value]) -> ChangeCopier | RemoveCopier:
    keys = node.entries("copier")
    if "remove" in keys:
        keys = node.entries("copier: {remove: …}", ("remove", "mode"))
        mode = cast("Removal", _need(node, keys, "mode", "remove").choice("mode", get_args(Removal)))
        return RemoveCopier(index=_number(keys["remove"], "remove", names), mode=mode, line=node.line)
    index = _number(_need(node, keys, "set", "copier"), "set", names)
    columns = {name: read_value(name, value) for name, value in keys.items() if name != "set"}
    if not columns:
        raise node.fault("copier needs at least one setting, like mode: monitor")
    if fixed := [name for name in ("master", "follower") if name in columns]:
        raise keys[fixed[0]].fault(f"the {fixed[0]} of a copier cannot change")
    return ChangeCopier(index=index, columns=columns, line=node.line)


def _protect(node: Node, names: Names, read_value: Callable[[str, Node], Value]) -> Protect:
    keys = node.entries(
        "protection",
        (
            *("account", "kind", "threshold", "action", "close_manual", "confirm_ms", "time_zone", "enabled"),
            *("of", "basis", "day_begins", "cushion_percent", "warn_percent", "moves_with", "locks_at"),
            *("would_breach", "count_balance_operations"),
        ),
    )
    account = _need(node, keys, "account", "protection").choice("account", names.accounts)
    for key in ("kind", "threshold"):
        _need(node, keys, key, "protection")
    settings = {name: read_value(name, value) for name, value in keys.items() if name != "account"}
    return Protect(account=account, settings=settings, line=node.line)


def _resync(node: Node, names: Names) -> Resync:
    keys = node.entries("resync", ("copier", "action", "max_distance_points"))
    actions: tuple[Literal["copy", "close", "dismiss"], ...] = ("copy", "close", "dismiss")
    action = _need(node, keys, "action", "resync").choice("action", actions)
    far = (
        keys["max_distance_points"].number("max_distance_points", least=ZERO) if "max_distance_points" in keys else None
    )
    index = _number(_need(node, keys, "copier", "resync"), "copier", names)
    return Resync(
        index=index, action=cast("Literal['copy', 'close', 'dismiss']", action), max_distance_points=far, line=node.line
    )


def _fault(node: Node, names: Names) -> FailOrders | FailSnapshots:
    keys = node.entries("fault", ("account", "next_orders", "kind", "share", "snapshot", "times"))
    account = _need(node, keys, "account", "fault").choice("account", names.accounts)
    if "snapshot" in keys:
        if wrong := [key for key in ("next_orders", "kind") if key in keys]:
            raise keys[wrong[0]].fault(
                f"a snapshot fault has no {wrong[0]}; write {{account: {account}, snapshot: empty, times: 2}}"
            )
        kind = cast("SnapshotFault", keys["snapshot"].choice("snapshot", get_args(SnapshotFault)))
        times = keys["times"].whole("times", least=1) if "times" in keys else 1
        return FailSnapshots(account=account, count=times, kind=kind, line=node.line)
    if "times" in keys:
        raise keys["times"].fault("times: is only for a snapshot fault; use next_orders: for orders")
    order_kind = cast("OrderFault", _need(node, keys, "kind", "fault").choice("kind", get_args(OrderFault)))
    count = keys["next_orders"].whole("next_orders", least=1) if "next_orders" in keys else 1
    share = keys["share"].number("share", above=ZERO) if "share" in keys else HALF
    if "share" in keys and (order_kind != "partial" or share >= 1):
        raise keys["share"].fault(
            "share: must be below 1: it is the fraction of the volume that a partial fill executes"
        )
    return FailOrders(account=account, count=count, kind=order_kind, share=share, line=node.line)


def _drop(node: Node, names: Names) -> Drop:
    keys = node.entries("drop", ("broadcasts", "database", "agent", "vps"))
    if len(keys) != 1:
        raise node.fault("drop takes one of broadcasts: 3s, database: 3s, agent: F, vps: A")
    [(what, value)] = keys.items()
    match what:
        case "broadcasts" | "database":
            return Drop(what=what, seconds=value.seconds(what), name="", line=node.line)
        case "agent":
            return Drop(what="agent", seconds=0, name=value.choice("agent", names.accounts), line=node.line)
        case _:
            return Drop(
                what="vps", seconds=0, name=value.choice("vps", sorted(names.vpses | names.accounts)), line=node.line
            )


READERS: Mapping[str, Callable[[Node, Names], Step]] = {
    "balance": _move_money,
    "drop": _drop,
    "fault": _fault,
    "replay": _replay,
    "resync": _resync,
    "trading": _set_trading,
}

HOLDING: Mapping[str, tuple[str, ...]] = {
    "expect": ("symbol", "side", "lots", "price", "sl", "tp"),
    "expect_orders": ("symbol", "side", "type", "order", "lots", "price", "sl", "tp"),
}


def _expect_book(key: str, node: Node, names: Names) -> ExpectBook:
    books = {
        account: tuple(
            _holding(key, item, names.least_price(account)) for item in _items(value, f"the book of {account}")
        )
        for account, value in node.entries(key, names.accounts).items()
    }
    return ExpectBook(kind="position" if key == "expect" else "order", books=books, line=node.line)


def _items(node: Node, what: str) -> Iterable[Node]:
    return () if node.is_null() else node.items(what)


def _holding(step: str, node: Node, least: Decimal | None) -> Holding:
    found: dict[str, str | Decimal] = {}
    for key, value in node.entries(
        "an expected position" if step == "expect" else "an expected order", HOLDING[step]
    ).items():
        match key:
            case "symbol":
                found[key] = value.text(key)
            case "side":
                found[key] = value.choice(key, SIDES)
            case "type":
                found[key] = value.choice(key, ("limit", "stop"))
            case "order":
                found["side"], found["type"] = value.choice(key, PENDING).split("_")
            case "sl" | "tp":
                found[key] = ZERO if value.is_null() else value.number(key, least=least)
            case "price":
                found[key] = value.number(key, least=least)
            case _:
                found[key] = value.number(key, least=ZERO)
    return Holding(keys=found, line=node.line)
