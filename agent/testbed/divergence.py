"""Whether every follower holds the copies that it should, computed from the brokers' books alone.

This is an oracle, independent of the database and its planner: it goes through the master's deals one by one, sizes
every opening by the copier's settings, scales the copy by what the master has left, and compares the result with the
follower's book at its broker.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, Decimal
from typing import Literal

from agent.model import Mode, Position, Side, SymbolSpec
from agent.paper.records import Deal

ZERO = Decimal(0)
OPPOSITE: Mapping[Side, Side] = {"buy": "sell", "sell": "buy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A copier's settings for size and direction. `symbols` maps the master's symbol names to the follower's where they
    differ."""

    sizing: Literal["multiplier", "fixed"] = "multiplier"
    value: Decimal = Decimal(1)
    contract_alignment: bool = True
    force_min: bool = False
    reverse: bool = False
    symbols: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """An account in its broker's books."""

    mode: Mode
    positions: tuple[Position, ...]
    deals: tuple[Deal, ...]
    symbols: Mapping[str, SymbolSpec]


@dataclass(frozen=True, slots=True)
class Wanted:
    symbol: str
    side: Side
    lots: Decimal


@dataclass(frozen=True, slots=True)
class Divergence:
    """Counts of differences. `missing`: a copy that should exist; `orphan`: a copy that should not; `volume_mismatch`:
    a copy with the wrong lots."""

    missing: int = 0
    orphan: int = 0
    volume_mismatch: int = 0

    def __add__(self, other: "Divergence") -> "Divergence":
        return Divergence(
            self.missing + other.missing, self.orphan + other.orphan, self.volume_mismatch + other.volume_mismatch
        )

    @property
    def none(self) -> bool:
        return self == Divergence()


@dataclass(frozen=True, slots=True)
class _Copy:
    """The expected copy of one master position, updated deal by deal."""

    held: Decimal = ZERO
    opened: Decimal = ZERO
    master_lots: Decimal = ZERO
    master_opened: Decimal = ZERO

    def grown(self, lots: Decimal, size: Decimal) -> "_Copy":
        held, master = self.held + size, self.master_lots + lots
        return _Copy(held=held, opened=held, master_lots=master, master_opened=master)

    def shrunk(self, lots: Decimal, spec: SymbolSpec) -> "_Copy":
        left = max(ZERO, self.master_lots - lots)
        if left == 0 or self.held == 0:
            return replace(self, held=ZERO if left == 0 else self.held, master_lots=left)
        target = _floor(self.opened * left / self.master_opened, spec.lots_step)
        return replace(self, held=min(self.held, max(target, spec.lots_min)), master_lots=left)


def _floor(lots: Decimal, step: Decimal) -> Decimal:
    return (lots / step).to_integral_value(ROUND_DOWN) * step


def size_of(lots: Decimal, settings: Settings, master: SymbolSpec, follower: SymbolSpec) -> Decimal:
    """The lots of the copy of an opening of `lots`; 0 when it is too small to be copied."""
    raw = settings.value
    if settings.sizing == "multiplier":
        raw = lots * settings.value
        if settings.contract_alignment:
            raw = raw * master.contract_size / follower.contract_size
    size = min(_floor(raw, follower.lots_step), follower.lots_max)
    if size >= follower.lots_min:
        return size
    return follower.lots_min if settings.force_min and raw > 0 else ZERO


def wanted_by(master: Book, settings: Settings, follower: Book) -> list[Wanted]:
    """Every copy that the follower should hold, given what the master holds now."""
    deals: dict[str, list[Deal]] = defaultdict(list)
    for deal in master.deals:
        if deal.ticket is not None:
            deals[deal.ticket].append(deal)
    wanted = []
    for position in master.positions:
        name = settings.symbols.get(position.symbol, position.symbol)
        spec = follower.symbols.get(name)
        if spec is None:
            continue
        copy = _follow(deals[position.ticket], position, settings, master.symbols[position.symbol], spec)
        if copy.held:
            side = OPPOSITE[position.side] if settings.reverse else position.side
            wanted.append(Wanted(name, side, copy.held))
    return wanted


def _follow(
    deals: Sequence[Deal], position: Position, settings: Settings, master: SymbolSpec, spec: SymbolSpec
) -> _Copy:
    copy = _Copy()
    for deal in deals:
        match deal.entry:
            case "in":
                copy = copy.grown(deal.lots, size_of(deal.lots, settings, master, spec))
            case "out" | "out_by":
                copy = copy.shrunk(deal.lots, spec)
            case "balance":
                pass
    if copy.master_lots != position.lots:
        # The deals do not add up to the position (the rest of one, under a new ticket): its lots count as its opening.
        copy = _Copy().grown(position.lots, size_of(position.lots, settings, master, spec))
    return copy


def compare(wanted: Iterable[Wanted], follower: Book) -> Divergence:
    """Compare `wanted`, of all copiers of one follower, with the copies in its book (the positions with our tags)."""
    held = [
        Wanted(p.symbol, p.side, p.lots) for p in follower.positions if p.tag is not None or follower.mode == "netting"
    ]
    if follower.mode == "netting":
        return _compare_net(_net(wanted), _net(held))
    return _compare_tickets(list(wanted), held)


def _net(holdings: Iterable[Wanted]) -> dict[str, Decimal]:
    net: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for one in holdings:
        net[one.symbol] += one.lots if one.side == "buy" else -one.lots
    return {symbol: lots for symbol, lots in net.items() if lots}


def _compare_net(wanted: Mapping[str, Decimal], held: Mapping[str, Decimal]) -> Divergence:
    both = wanted.keys() & held.keys()
    return Divergence(
        missing=len(wanted.keys() - both),
        orphan=len(held.keys() - both),
        volume_mismatch=sum(1 for symbol in both if wanted[symbol] != held[symbol]),
    )


def _compare_tickets(wanted: list[Wanted], held: list[Wanted]) -> Divergence:
    for one in tuple(wanted):
        if one in held:
            wanted.remove(one)
            held.remove(one)
    mismatches = 0
    for one in tuple(wanted):
        other = next((h for h in held if (h.symbol, h.side) == (one.symbol, one.side)), None)
        if other is not None:
            wanted.remove(one)
            held.remove(other)
            mismatches += 1
    return Divergence(missing=len(wanted), orphan=len(held), volume_mismatch=mismatches)
