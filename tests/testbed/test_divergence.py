from datetime import UTC, datetime
from decimal import Decimal

from agent.model import ExecutionId, Position, Side, SymbolSpec, Ticket
from agent.paper.records import Deal, DealEntry
from agent.testbed.divergence import Book, Divergence, Settings, Wanted, compare, size_of, wanted_by

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def spec(
    name: str = "EURUSD", *, contract: str = "100000", least: str = "0.01", step: str = "0.01", most: str = "50"
) -> SymbolSpec:
    return SymbolSpec(
        name=name, contract_size=Decimal(contract), digits=5, tick_size=Decimal("0.00001"), profit_currency="USD",
        margin_currency="EUR", lots_min=Decimal(least), lots_max=Decimal(most), lots_step=Decimal(step),
    )  # fmt: skip


def held(lots: str, *, side: Side = "buy", tag: int | None = 1, ticket: str = "1", symbol: str = "EURUSD") -> Position:
    return Position(
        ticket=Ticket(ticket), kind="position", symbol=symbol, side=side, lots=Decimal(lots), price=Decimal("1.1"),
        tag=None if tag is None else ExecutionId(tag),
    )  # fmt: skip


def deals(*entries: tuple[DealEntry, str]) -> tuple[Deal, ...]:
    return tuple(
        Deal(number=n, at=NOW, entry=entry, reason="client", ticket="1", symbol="EURUSD", lots=Decimal(lots))
        for n, (entry, lots) in enumerate(entries, 1)
    )


def book(*positions: Position, history: tuple[Deal, ...] = (), mode: str = "hedging", **spec_: str) -> Book:
    return Book(
        mode="netting" if mode == "netting" else "hedging",
        positions=positions,
        deals=history,
        symbols={"EURUSD": spec(**spec_)},
    )


def settings(
    value: str = "0.5", *, force_min: bool = False, reverse: bool = False, contract_alignment: bool = True
) -> Settings:
    return Settings(
        value=Decimal(value), symbols={}, force_min=force_min, reverse=reverse, contract_alignment=contract_alignment
    )


def test_ten_reductions_do_not_drift() -> None:
    reductions: list[tuple[DealEntry, str]] = [("out", "0.10")] * 9
    history = deals(("in", "1.00"), *reductions)
    master = book(held("0.10", tag=None), history=history)
    assert wanted_by(master, settings("0.05"), book()) == [Wanted("EURUSD", "buy", Decimal("0.01"))]


def test_a_copy_is_held_at_its_minimum_while_the_master_holds_anything() -> None:
    master = book(held("0.02", tag=None), history=deals(("in", "0.03"), ("out", "0.01")))
    assert wanted_by(master, settings("0.34"), book()) == [Wanted("EURUSD", "buy", Decimal("0.01"))]


def test_an_increase_is_sized_by_itself() -> None:
    master = book(held("3.00", tag=None), history=deals(("in", "1.00"), ("in", "2.00")))
    assert wanted_by(master, settings("0.5"), book()) == [Wanted("EURUSD", "buy", Decimal("1.50"))]


def test_a_copy_that_is_too_small_is_not_expected_unless_forced() -> None:
    assert size_of(Decimal("0.01"), settings("0.4"), spec(), spec()) == 0
    assert size_of(Decimal("0.01"), settings("0.4", force_min=True), spec(), spec()) == Decimal("0.01")


def test_contract_sizes_are_aligned() -> None:
    big, small = spec(contract="10"), spec(contract="1", step="0.1", least="0.1")
    assert size_of(Decimal("0.5"), settings("1"), big, small) == Decimal("5.0")
    assert size_of(Decimal("0.5"), settings("1", contract_alignment=False), big, small) == Decimal("0.5")


def test_reverse_expects_the_other_direction() -> None:
    master = book(held("1.00", tag=None), history=deals(("in", "1.00")))
    assert wanted_by(master, settings("1", reverse=True), book()) == [Wanted("EURUSD", "sell", Decimal("1.00"))]


def test_missing_orphan_and_other_volume_are_distinguished() -> None:
    wanted = [Wanted("EURUSD", "buy", Decimal("0.50"))]
    assert compare(wanted, book()) == Divergence(missing=1)
    assert compare([], book(held("0.50"))) == Divergence(orphan=1)
    assert compare(wanted, book(held("0.49"))) == Divergence(volume_mismatch=1)
    assert compare(wanted, book(held("0.5"))).none


def test_a_position_opened_by_hand_is_no_orphan() -> None:
    assert compare([], book(held("0.50", tag=None))).none


def test_a_netting_follower_is_compared_by_its_net() -> None:
    wanted = [Wanted("EURUSD", "buy", Decimal("1.0")), Wanted("EURUSD", "sell", Decimal("0.4"))]
    assert compare(wanted, book(held("0.6"), mode="netting")).none
    assert compare(wanted, book(held("1.0"), mode="netting")) == Divergence(volume_mismatch=1)
