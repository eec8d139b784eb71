"""Texts and names from a broker beyond the limits are cut or left out; no trade is lost for them."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from engine_harness import Desk, position
from watcher_harness import QUICK, stage

from agent import limits
from agent.control_plane import encode, json_fields
from agent.control_plane.json_fields import WireError
from agent.model import SymbolSpec, Ticket

SPEC = SymbolSpec(
    name="EURUSD",
    contract_size=Decimal(100_000),
    digits=5,
    tick_size=Decimal("0.00001"),
    profit_currency="USD",
    margin_currency="EUR",
    lots_min=Decimal("0.01"),
    lots_max=Decimal(100),
    lots_step=Decimal("0.01"),
)


@pytest.mark.parametrize(
    ("said", "most", "kept"),
    [
        ("x" * 200, 200, "x" * 200), ("x" * 201, 200, "x" * 200), ("x" * 9_000_000, 200, "x" * 200), ("", 200, ""),
        ("a\0b", 200, "ab"), ("ü" * 201, 200, "ü" * 200), ("half \ud83d", 200, "half ?"), ("ü\0", 200, "ü"),
    ],
)  # fmt: skip
def test_texts_are_cut_to_what_the_database_stores(said: str, most: int, kept: str) -> None:
    assert limits.cut(said, most) == kept
    assert orjson.loads(json_fields.dumps(kept)) == kept


def test_symbols_beyond_the_limits_are_left_out_and_what_is_held_comes_first() -> None:
    names = [f"S{n}" for n in range(10_001)]
    told = limits.tradable([*names, "x" * 65, "a\0", ""], ["HELD", "y" * 65, "S10000"])
    assert len(told) == 10_000
    assert told[:2] == ["HELD", "S10000"]
    assert limits.tradable(["x" * 64, "x" * 65], []) == ["x" * 64]


def test_a_position_is_reported_with_its_comment_cut() -> None:
    told = encode.position_to_json(position("1", comment="c" * 100_000))
    assert told["comment"] == "c" * 200
    told = encode.position_to_json(position("1", comment="\ud83d\0"))
    json_fields.dumps(told)


@pytest.mark.covers("R25")
@pytest.mark.parametrize("odd", ["\0", "\ud83d", "a\0b"])
def test_every_text_of_a_broker_is_cleaned_where_it_is_encoded(odd: str) -> None:
    spec = replace(SPEC, profit_currency=f"USD{odd}", margin_currency=f"EUR{odd}")
    told = (
        encode.position_to_json(position("1", comment=odd, replaces=f"7{odd}")),
        encode.symbol_to_json("EURUSD", spec, None),
    )
    for text in (json_fields.dumps(each).decode() for each in told):
        assert "u0000" not in text
        assert "\\ud" not in text


@pytest.mark.parametrize("depth", [1_025, 100_000, 5_000_000])
def test_json_that_is_nested_without_end_is_a_malformed_message(depth: int) -> None:
    with pytest.raises(WireError):
        json_fields.loads(b"[" * depth + b"]" * depth)


async def test_a_position_that_the_database_cannot_store_affects_neither_reads_nor_pushes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk()
    desk.put(position("1"))
    desk.put(position("2", symbol="S" * 65))
    async with stage(tmp_path) as open_scene:
        scene = await open_scene(desk, settings=replace(QUICK, verify_every=timedelta(milliseconds=20)))
        desk.put(position("T" * 65))
        desk.put(position("3", symbol="S" * 64))
        snapshot, opened = await scene.told(2)
        assert [each.ticket for each in snapshot.positions] == ["1"]
        assert (opened.position and opened.position.ticket) == Ticket("3")
        await scene.reads(3)
        assert len(scene.database.events) == 2
        assert scene.session.left_out == {"2", "T" * 65}
        assert scene.session.health() == ("connected", None)
    assert caplog.text.count("position_left_out") == 2
