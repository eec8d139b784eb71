import asyncio
from dataclasses import replace
from io import StringIO
from typing import cast

import pytest
from rich.console import Console

from agent.demo.live_table import Picture, plain, render, show, without_database
from agent.paper.client import PaperClient
from agent.testbed.quiescence import Observer
from agent.testbed.waiting import wait_for

PICTURE = Picture(
    verdict="prop-1: the close of EURUSD 0.3 is not filled after 12 s, the market is closed; close it at the broker if"
    " you cannot wait, and 2 more problems",
    tone="bad",
    agents=[
        {"name": f"vps-{letter}", "status": "online", "rss_mb": 71, "rtt_ms": 1.2, "age": 0,
         "accounts": 3} for letter in "abc"
    ],
    trades={"copied": 12300, "nothing_to_do": 41, "not_copied": 7, "in_flight": 0},
    orders={"completed": 12345, "rejected": 2, "open": 1},
    reasons={"below_min": 7},
    p50=3.21,
    p95=14.0,
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
    trades=dict.fromkeys(("copied", "partly", "in_flight", "nothing_to_do", "not_copied"), 123456),
    orders=dict.fromkeys(("completed", "rejected", "expired", "cancelled", "open"), 123456),
    reasons=dict.fromkeys(
        ("account_not_connected", "risk_per_trade_limit", "symbol_unproven", "below_min", "would_breach"), 12345
    ),
    p50=None,
    p95=14000.0,
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
        "prop-1: the close of EURUSD 0.3", "and 2 more problems",
        "vps-a", "12345 completed", "1 in flight", "12300 copied, 7 not copied, 41 nothing to do (one per follower)",
        "3.2 ms", "last 500 orders", "7 below min", "reverse-chf", "market closed",
    ):  # fmt: skip
        assert shown in text


@pytest.mark.parametrize("width", [80, 120])
def test_no_cell_is_cut_however_long_it_is(width: int) -> None:
    lines = drawn(LONG, width)
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    assert "…" not in text
    letters = "".join(text.split())
    for shown in ("12345accountnotconnected", "123456inflight", "12345.678", "unreachable", "200", "12345sago"):
        assert shown in letters
    # a cell that continues on the next line stands in its own column: all its characters are there
    for column in ("NAS100USD-verylong.pro", "close only until the next session", "prop-account-of-a-long-name-7"):
        assert all(text.count(letter) >= column.count(letter) * 2 for letter in set(column))


def test_a_low_terminal_shows_fewer_orders_instead_of_a_cut_display() -> None:
    lines = drawn(LONG, 80, 24)
    assert len(lines) <= 24
    assert "symbol unproven" in " ".join("\n".join(lines).split())
    assert len(drawn(PICTURE, 80, 24)) == len(drawn(PICTURE, 80))


def test_without_a_terminal_there_is_one_line() -> None:
    line = plain(PICTURE, "12 s")
    assert "\n" not in line
    assert "and 2 more problems" in line
    assert "3 agents online" in line
    assert "not copied: 7 below min" in line
    assert "_" not in line


@pytest.mark.parametrize("terminal", [True, False])
async def test_while_the_database_is_away_the_display_says_so(terminal: bool) -> None:
    out = StringIO()
    console = Console(file=out, width=120, force_terminal=terminal)
    nobody = Observer("host=127.0.0.1 port=1 user=nobody connect_timeout=1", cast(PaperClient, None))
    task = asyncio.create_task(show(console, nobody, lambda: "12 s"))

    async def said() -> bool | None:
        return True if "The database does not answer" in out.getvalue() else None

    try:
        await wait_for("the display says so", said, 10)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_what_was_well_before_the_database_went_away_is_not_shown_as_well() -> None:
    old = without_database(replace(PICTURE, verdict="All is well: 4 of 4 accounts connected, 1 copier on", tone="ok"))
    assert old.tone == "bad"
    assert "All is well" not in plain(old, "12 s")
    assert "0 agents online" in plain(old, "12 s")
    assert "12345 completed" in plain(old, "12 s"), "the last counts are still shown"
