"""The demo's accounts: one master, and six followers that differ in everything that a copier must handle."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final

from agent.demo.replay import needed_balance, specs_of
from agent.demo.statement import Statement
from agent.model import SymbolSpec
from agent.paper.profile import Profile
from agent.paper.specs import DEFAULT_PRICES, REFERENCE_USD, infer_spec
from agent.testbed.divergence import Settings
from agent.testbed.farm import Opening

#: the demo brokers' prices: the defaults, and the pair that converts the CHF of one follower to USD
DEMO_PRICES: Final = {**DEFAULT_PRICES, "USDCHF": (Decimal("0.89000"), Decimal("0.89012"))}
MASTER: Final = "master"
MASTER_BALANCE: Final = Decimal(1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A follower: its sizing, its broker's symbol names and volume steps, and its VPS."""

    name: str
    vps: int
    currency: str = "USD"
    suffix: str = ""
    lots_step: Decimal = Decimal("0.01")
    columns: Mapping[str, object] = field(default_factory=dict)


HALF: Final = {"sizing_mode": "multiplier", "sizing_value": Decimal("0.5")}
THIRD: Final = {"sizing_mode": "multiplier", "sizing_value": Decimal("0.33")}

ROLES: Final = (
    # on its master's VPS: its orders need no broadcast
    Role(name="twin", vps=0, columns={"sizing_mode": "multiplier", "sizing_value": Decimal(1)}),
    Role(name="half-eur", vps=1, currency="EUR", suffix=".m", columns=HALF),
    Role(name="third-gbp", vps=1, currency="GBP", suffix="-pro", columns=THIRD),
    Role(name="fixed-usd", vps=1, suffix=".x", columns={"sizing_mode": "fixed", "sizing_value": Decimal("0.20")}),
    Role(
        name="double-jpy", vps=2, currency="JPY", suffix=".j", lots_step=Decimal("0.1"),
        columns={"sizing_mode": "multiplier", "sizing_value": Decimal(2)},
    ),
    Role(
        name="reverse-chf", vps=2, currency="CHF", suffix="_r",
        columns={"sizing_mode": "multiplier", "sizing_value": Decimal("0.75"), "reverse": True,
                 "min_policy": "force_min"},
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    role: Role
    opening: Opening
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    master: Opening
    followers: tuple[Follower, ...]


def root_of(name: str) -> str:
    """A symbol's name in capitals, without the broker's prefix and suffix."""
    return re.sub(r"[^A-Z0-9].*$", "", re.sub(r"^[^A-Z0-9]+", "", name.upper())) or name.upper()


def trading_cast() -> Cast:
    """Accounts for a master that trades randomly in the usual instruments."""
    specs = {name: infer_spec(name) for name in DEMO_PRICES}
    return _cast(specs, lambda size: MASTER_BALANCE * size(Decimal(1)), smallest=Decimal("0.10"))


def replaying_cast(statement: Statement) -> Cast:
    """Accounts for a master that replays a statement; balances are chosen so that nobody is ever stopped out."""
    smallest = min(action.lots for action in statement.actions if action.kind == "open")
    return _cast(specs_of(statement), lambda size: needed_balance(statement, size), smallest=smallest)


def _cast(
    specs: Mapping[str, SymbolSpec], balance: Callable[[Callable[[Decimal], Decimal]], Decimal], *, smallest: Decimal
) -> Cast:
    master = Opening(name=MASTER, login=MASTER, balance=balance(lambda lots: lots), symbols=tuple(specs.values()))
    roots = [root_of(name) for name in specs]
    followers = []
    for role in ROLES:
        # If two names have the same root, the follower offers the same two names, so that the mapping is unambiguous.
        names = {name: name if roots.count(root_of(name)) > 1 else root_of(name) + role.suffix for name in specs}
        own = {names[name]: _own_spec(spec, names[name], role) for name, spec in specs.items()}
        factor = _factor(role, smallest)
        needed = balance(lambda lots, factor=factor: lots * factor) / REFERENCE_USD[role.currency]  # type: ignore[misc]
        opening = Opening(
            name=role.name,
            login=role.name,
            currency=role.currency,
            balance=needed.quantize(Decimal(1)),
            symbols=tuple(own.values()),
            profile=Profile(seed=role.vps + 1, latency_ms_min=1, latency_ms_max=6),
        )
        followers.append(Follower(role=role, opening=opening, settings=_settings(role, names)))
    return Cast(master=master, followers=tuple(followers))


def _own_spec(spec: SymbolSpec, name: str, role: Role) -> SymbolSpec:
    """The master's symbol at a follower's broker. Its steps are as many times as large as the role's are of the usual
    0.01, and the largest copy, twice the master's volume, still fits into one order."""
    step = spec.lots_step * role.lots_step / Decimal("0.01")
    return replace(spec, name=name, lots_step=step, lots_min=max(step, spec.lots_min), lots_max=2 * spec.lots_max)


def _factor(role: Role, smallest: Decimal) -> Decimal:
    """How many times the master's exposure the follower may hold."""
    value = role.columns["sizing_value"]
    assert isinstance(value, Decimal)
    return value / smallest if role.columns["sizing_mode"] == "fixed" else max(Decimal(1), value)


def _settings(role: Role, names: Mapping[str, str]) -> Settings:
    value = role.columns["sizing_value"]
    assert isinstance(value, Decimal)
    return Settings(
        sizing="fixed" if role.columns["sizing_mode"] == "fixed" else "multiplier",
        value=value,
        reverse=role.columns.get("reverse") is True,
        force_min=role.columns.get("min_policy") == "force_min",
        symbols=names,
    )
