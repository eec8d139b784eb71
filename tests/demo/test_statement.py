from decimal import Decimal
from pathlib import Path

import pytest

from agent.demo.statement import parse_statement, read_statement
from agent.demo.statement_rows import COLUMNS, StatementError

HEADER = ",".join(COLUMNS)
ROW = "1,2025.01.02 10:00:00,buy,0.10,EURUSD,1.10000,0,0,2025.01.02 11:00:00,1.10100,0.00,0.00,10.00,"


def parse(*rows: str) -> list[tuple[str, str, Decimal]]:
    statement = parse_statement("s.csv", "\n".join((HEADER, *rows)))
    return [(action.kind, action.key, action.lots) for action in statement.actions]


def test_a_closed_trade_is_an_open_and_a_close() -> None:
    assert parse(ROW) == [("open", "1", Decimal("0.10")), ("close", "1", Decimal("0.10"))]


def test_an_empty_close_time_leaves_the_trade_open() -> None:
    assert parse(ROW.replace("2025.01.02 11:00:00", "")) == [("open", "1", Decimal("0.10"))]


def test_partial_closes_with_new_tickets_are_one_position() -> None:
    first = ROW.replace("buy,0.10", "buy,0.30") + "to #2"
    second = ROW.replace("1,2025", "2,2025", 1).replace("11:00:00", "12:00:00") + "to #3"
    third = (
        ROW.replace("1,2025", "3,2025", 1).replace("11:00:00", "13:00:00").replace("buy,0.10", "buy,0.20") + "from #2"
    )
    assert parse(first, second, third) == [
        ("open", "1", Decimal("0.60")),
        ("reduce", "1", Decimal("0.30")),
        ("reduce", "1", Decimal("0.10")),
        ("close", "1", Decimal("0.20")),
    ]


def test_one_direction_of_a_link_is_enough() -> None:
    rest = ROW.replace("1,2025", "2,2025", 1).replace("11:00:00", "12:00:00") + "from #1"
    assert [kind for kind, _, _ in parse(ROW, rest)] == ["open", "reduce", "close"]


def test_a_rest_that_is_still_open_stays_open() -> None:
    rest = ROW.replace("1,2025", "2,2025", 1).replace("2025.01.02 11:00:00", "") + "from #1"
    assert [kind for kind, _, _ in parse(ROW, rest)] == ["open", "reduce"]


def test_a_link_to_a_ticket_outside_the_file_stands_alone() -> None:
    assert [kind for kind, _, _ in parse(ROW + "from #99")] == ["open", "close"]


def test_actions_come_in_the_order_of_their_times() -> None:
    later = ROW.replace("1,2025", "2,2025", 1).replace("10:00:00", "10:30:00")
    assert [(kind, key) for kind, key, _ in parse(later, ROW)] == [
        ("open", "1"),
        ("open", "2"),
        ("close", "2"),
        ("close", "1"),
    ]


def test_a_trade_closed_in_the_second_it_was_opened_opens_first() -> None:
    assert [kind for kind, _, _ in parse(ROW.replace("11:00:00", "10:00:00"))] == ["open", "close"]


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([ROW.replace("0.10", "-0.10", 1)], "s.csv:2, column lots"),
        ([ROW.replace("0.10", "nan", 1)], "s.csv:2, column lots"),
        ([ROW.replace("0.10", "0.00", 1)], "s.csv:2, column lots"),
        ([ROW.replace("buy", "long")], "s.csv:2, column side"),
        ([ROW.replace("2025.01.02 10:00:00", "2025-01-02")], "s.csv:2, column open_time"),
        ([ROW.replace("2025.01.02 11:00:00", "2025.01.01 09:00:00")], "s.csv:2, column close_time"),
        ([ROW.replace("1.10100", "0")], "s.csv:2, column close_price"),
        ([ROW.replace("1.10000", "1e5")], "s.csv:2, column open_price"),
        ([ROW, ROW], "s.csv:3, column ticket"),
        ([ROW.replace("EURUSD", "")], "s.csv:2, column symbol"),
        ([ROW + ",more"], "s.csv:2"),
        ([ROW + "to #2", ROW.replace("1,2025", "2,2025", 1).replace("EURUSD", "GBPUSD")], "s.csv:2, column comment"),
        ([ROW + "from #1"], "column comment"),
        ([], "no trades"),
    ],
)
def test_a_file_that_is_not_a_statement_is_refused_with_line_and_column(rows: list[str], where: str) -> None:
    with pytest.raises(StatementError, match=where) as caught:
        parse(*rows)
    assert caught.value.code == "TC650"


def test_other_columns_are_refused() -> None:
    with pytest.raises(StatementError, match="must name the columns"):
        parse_statement("s.csv", "a,b\n1,2\n")


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StatementError, match="cannot be read"):
        read_statement(str(tmp_path / "none.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StatementError, match="not UTF-8"):
        read_statement(str(tmp_path / "binary.csv"))


def test_the_example_has_partial_closes_and_an_open_trade() -> None:
    statement = read_statement("example")
    assert {action.kind for action in statement.actions} == {"open", "reduce", "close"}
    assert any(row.closed_at is None for row in statement.rows)
    assert "EURUSD.m" in statement.symbols


# --- what brokers write that looks wrong ----------------------------------------------------------------------


def closed_by(ticket: int, other: int, *, lots: str = "0.00", side: str = "sell") -> str:
    return (
        f"{ticket},2025.01.02 10:30:00,{side},{lots},EURUSD,1.10000,0,0,2025.01.02 11:00:00,1.10100,0,0,0,"
        f"close hedge by #{other}"
    )


def test_of_two_positions_closed_by_each_other_the_one_without_lots_has_the_volume_of_the_other() -> None:
    assert parse(ROW, closed_by(2, 1)) == [
        ("open", "1", Decimal("0.10")),
        ("open", "2", Decimal("0.10")),
        ("close", "1", Decimal("0.10")),
        ("close", "2", Decimal("0.10")),
    ]


def test_what_is_left_of_the_larger_one_goes_on() -> None:
    rest = ROW.replace("1,2025", "3,2025", 1).replace("buy,0.10", "sell,0.25").replace("11:00:00", "12:00:00")
    assert parse(ROW, closed_by(2, 1), rest + "from #2") == [
        ("open", "1", Decimal("0.10")),
        ("open", "2", Decimal("0.35")),
        ("reduce", "2", Decimal("0.10")),
        ("close", "1", Decimal("0.10")),
        ("close", "2", Decimal("0.25")),
    ]


def test_a_row_whose_volume_the_file_does_not_tell_is_left_out_and_named() -> None:
    for unknown in (closed_by(2, 99), closed_by(2, 2)):
        statement = parse_statement("s.csv", "\n".join((HEADER, ROW, unknown)))
        assert [row.ticket for row in statement.rows] == ["1"]
        assert statement.left_out == (3,)


def test_a_file_of_which_nothing_is_left_has_no_trades() -> None:
    with pytest.raises(StatementError, match="the statement has no trades"):
        parse(closed_by(2, 1), closed_by(1, 2))


@pytest.mark.parametrize("closed", ["09:59:59", "09:00:00", "00:00:00"])
def test_a_clock_set_back_closes_the_trade_right_after_its_open(closed: str) -> None:
    assert [kind for kind, _, _ in parse(ROW.replace("11:00:00", closed))] == ["open", "close"]


def test_a_clock_set_back_between_two_partial_closes_keeps_their_order() -> None:
    first = ROW + "to #2"
    rest = ROW.replace("1,2025", "2,2025", 1).replace("11:00:00", "10:20:00").replace("buy,0.10", "buy,0.30")
    assert parse(first, rest) == [
        ("open", "1", Decimal("0.40")),
        ("reduce", "1", Decimal("0.10")),
        ("close", "1", Decimal("0.30")),
    ]


def test_a_close_more_than_a_day_before_the_open_is_refused() -> None:
    with pytest.raises(StatementError, match=r"s\.csv:2, column close_time: .* more than a day before it opens"):
        parse(ROW.replace("2025.01.02 11:00:00", "2025.01.01 09:59:59"))
