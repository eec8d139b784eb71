"""An agent's book of an account whose orders and positions may carry the same number."""

from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from engine_harness import Desk, position
from watcher_harness import Scene, stage

from agent.account.book import Book, Key
from agent.model import Position, Ticket
from agent.watching.account_read import missing


def order(ticket: str = "7", **more: Any) -> Position:
    return position(ticket, kind="order", order_type="limit", **more)


def book_with(*states: Position) -> Book:
    book = Book()
    book.replace_all(states, 1)
    return book


def held(book: Book) -> set[tuple[str, str, str]]:
    return {(state.kind, state.ticket, state.symbol) for state in book.positions()}


def test_a_position_of_another_symbol_is_not_the_order_of_its_number() -> None:
    book = book_with(order())
    cable = book.named(position("7", symbol="GBPUSD"))
    assert (cable.replaces, cable.replaces_kind) == (None, None)
    assert book.before(cable) is None
    book.put(cable, 2)
    assert held(book) == {("order", "7", "EURUSD"), ("position", "7", "GBPUSD")}
    book.put(replace(cable, lots=Decimal(0)), 3)
    assert held(book) == {("order", "7", "EURUSD")}


def test_a_position_of_the_other_side_is_not_the_order_of_its_number() -> None:
    assert book_with(order()).named(position("7", side="sell")).replaces is None


def test_the_fill_of_an_order_under_its_number_is_named() -> None:
    book = book_with(order())
    filled = book.named(position("7"))
    assert (filled.replaces, filled.replaces_kind) == ("7", "order")
    before = book.before(filled)
    assert before is not None
    assert before.kind == "order"
    book.put(filled, 2)
    assert held(book) == {("position", "7", "EURUSD")}
    # what the order was is remembered, even if the platform does not say it again
    assert book.named(position("7", sl=Decimal(1))).replaces_kind is None
    assert book.named(position("7", replaces="7")).replaces_kind == "order"


@pytest.mark.parametrize("kind", ["order", "position"])
def test_of_two_equal_numbers_only_the_named_one_is_continued(kind: str) -> None:
    book = book_with(order(), position("7", symbol="GBPUSD"))
    symbol = "EURUSD" if kind == "order" else "GBPUSD"
    rest = book.named(position("8", symbol=symbol, replaces="7"))
    assert rest.replaces_kind == kind
    book.put(rest, 2)
    others = {("order", "7", "EURUSD"), ("position", "7", "GBPUSD")} - {(kind, "7", symbol)}
    assert held(book) == {("position", "8", symbol)} | others


def test_a_snapshot_never_buries_what_it_shows_itself() -> None:
    book = book_with(order(), position("7"), position("8", replaces="7"))
    assert {(kind, ticket) for kind, ticket, _ in held(book)} == {
        ("order", "7"),
        ("position", "7"),
        ("position", "8"),
    }


def test_a_missing_order_is_not_hidden_by_a_position_of_its_number() -> None:
    book = book_with(order(), position("7", symbol="GBPUSD"))
    assert [(state.kind, state.lots) for state in missing(book, (position("7", symbol="GBPUSD"),))] == [
        ("order", Decimal(0))
    ]
    named = position("8", replaces="7", replaces_kind="order")
    assert [state.kind for state in missing(book, (named,))] == ["position"]


def test_a_close_of_an_unknown_position_is_not_the_end_of_the_order_of_its_number() -> None:
    book = book_with(order())
    gone = book.named(position("7", lots="0"))
    book.put(gone, 2)
    assert book.get(Key("order", Ticket("7"))) is not None


# -- what an agent reports ------------------------------------------------------------------------------------


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """An account with order 7; its snapshot is reported."""
    desk = Desk()
    desk.held[Ticket("order 7")] = order()
    async with stage(tmp_path) as open_scene:
        yield await open_scene(desk)


def told(scene: Scene) -> list[tuple[str, str | None, str | None]]:
    return [
        (event.type, event.position.replaces, event.position.replaces_kind)
        for event in scene.database.events
        if event.position is not None
    ]


async def test_a_push_of_another_position_leaves_the_order(scene: Scene) -> None:
    scene.desk.put(position("7", symbol="GBPUSD"))
    await scene.told(2)
    await scene.reads(4)
    scene.desk.put(position("7", symbol="GBPUSD", lots="0"))
    await scene.told(3)
    await scene.reads(4)
    assert told(scene) == [("opened", None, None), ("closed", None, None)]


@pytest.mark.parametrize("pushed", [True, False])
async def test_a_fill_under_the_orders_number_is_one_event_that_names_the_order(scene: Scene, pushed: bool) -> None:
    del scene.desk.held[Ticket("order 7")]
    scene.desk.put(position("7"), push=pushed)
    if pushed:
        await scene.told(2)
    await scene.reads(4)
    assert told(scene) == [("opened", "7", "order")]


async def test_a_read_that_shows_both_says_that_the_position_began_by_itself(scene: Scene) -> None:
    scene.desk.put(position("7"), push=False)
    await scene.reads(4)
    assert told(scene) == [("opened", None, "position")]
    del scene.desk.held[Ticket("order 7")]
    await scene.reads(6)
    assert [kind for kind, _, _ in told(scene)] == ["opened", "cancelled"]


async def test_a_change_of_levels_of_one_never_replaces_that_of_the_other(scene: Scene) -> None:
    scene.desk.put(position("7", symbol="GBPUSD"))
    await scene.told(2)
    scene.desk.put(position("7", symbol="GBPUSD", sl=Decimal(1)))
    scene.desk.put(order(sl=Decimal("1.05")))
    await scene.told(4)
    assert [kind for kind, _, _ in told(scene)] == ["opened", "modified", "amended"]
