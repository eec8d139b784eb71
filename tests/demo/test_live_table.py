from io import StringIO

import pytest
from rich.console import Console

from agent.demo.live_table import Picture, plain, render

PICTURE = Picture(
    verdict="prop-1: the close of EURUSD 0.3 is not filled after 12 s, the market is closed; close it at the broker if"
    " you cannot wait, and 2 more problems",
    tone="bad",
    agents=[
        {"name": f"vps-{letter}", "status": "online", "rss_mb": 71, "rtt_ms": 1.2, "age": 0,
         "accounts": 3} for letter in "abc"
    ],
    states={"completed": 12345, "rejected": 2},
    p50=3.21,
    p95=14.0,
    reasons=[{"reason": "below_min", "n": 7}, {"reason": "closed_by_follower", "n": 1}],
    last=[
        {
            "name": "reverse-chf", "action": "reduce", "side": "sell", "symbol": "NAS100USD-verylong", "lots": "0.75",
            "status": "rejected", "reason": "market_closed", "ms": 4.0,
        }
    ],
)  # fmt: skip


LONG = Picture(
    agents=[
        {"name": f"vps-of-a-long-name-in-frankfurt-{number}", "status": "unreachable", "rss_mb": 71, "rtt_ms": 1.2,
         "age": 12345, "accounts": 200} for number in range(3)
    ],
    states=dict.fromkeys(("completed", "rejected", "expired", "cancelled", "queued", "retrying"), 123456),
    p50=None,
    p95=14000.0,
    reasons=[{"reason": name, "n": 12345} for name in
             ("account_not_connected", "risk_per_trade_limit", "symbol_unproven", "below_min", "would_breach")],
    last=[
        {
            "name": f"prop-account-of-a-long-name-{number}", "action": "increase", "side": "sell",
            "symbol": "NAS100USD-verylong.pro", "lots": "12345.678", "status": "rejected",
            "reason": "close_only_until_the_next_session", "ms": 4.0,
        }
        for number in range(8)
    ],
)  # fmt: skip


def drawn(picture: Picture, width: int, height: int | None = None) -> list[str]:
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=False)
    console.print(render(picture, "12 s of 20 s: the master trades", width=width, height=height))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width: int) -> None:
    lines = drawn(PICTURE, width)
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    for shown in (
        "prop-1: the close of EURUSD 0.3",
        "and 2 more problems",
        "vps-a",
        "12345 completed",
        "3.2 ms",
        "below_min 7",
        "reverse-chf",
        "market_closed",
    ):
        assert shown in text


@pytest.mark.parametrize("width", [80, 120])
def test_no_cell_is_cut_however_long_it_is(width: int) -> None:
    lines = drawn(LONG, width)
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    assert "…" not in text
    letters = "".join(text.split())
    for shown in ("account_not_connected12345", "123456retrying", "12345.678", "unreachable", "200", "12345sago"):
        assert shown in letters
    # a cell that continues on the next line stands in its own column: all its characters are there
    for column in ("NAS100USD-verylong.pro", "close_only_until_the_next_session", "prop-account-of-a-long-name-7"):
        assert all(text.count(letter) >= column.count(letter) * 2 for letter in set(column))


def test_a_low_terminal_shows_fewer_orders_instead_of_a_cut_display() -> None:
    lines = drawn(LONG, 80, 24)
    assert len(lines) <= 24
    assert "symbol_unproven" in "\n".join(lines)
    assert len(drawn(PICTURE, 80, 24)) == len(drawn(PICTURE, 80))


def test_without_a_terminal_there_is_one_line() -> None:
    line = plain(PICTURE, "12 s")
    assert "\n" not in line
    assert "and 2 more problems" in line
    assert "3 agents online" in line
    assert "below_min 7" in line
