from io import StringIO

import pytest
from rich.console import Console

from agent.demo.live_table import Picture, plain, render

PICTURE = Picture(
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


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width: int) -> None:
    out = StringIO()
    Console(file=out, width=width, force_terminal=False).print(
        render(PICTURE, "12 s of 20 s: the master trades", width=width)
    )
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    for shown in ("vps-a", "12345 completed", "3.2 ms", "below_min 7", "reverse-chf", "market_closed"):
        assert shown in text


def test_without_a_terminal_there_is_one_line() -> None:
    line = plain(PICTURE, "12 s")
    assert "\n" not in line
    assert "3 agents online" in line
    assert "below_min 7" in line
