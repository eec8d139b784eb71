"""The demo's results as a sentence and a table for people."""

from agent.demo.summary import summary
from agent.testbed.figures import STAGES

FIGURES: dict[str, object] = {
    "seconds": 6.0,
    "events": 18,
    "executions": {"completed": 100, "rejected": {}, "expired": 0, "cancelled": 1, "open": 0},
    "trades": {"all": 105, "copied": 99, "partly": 0, "in_flight": 0, "nothing_to_do": 6, "not_copied": 0},
    "not_copied": {},
    "skipped": {},
    "success_rate": 1.0,
    "whole_ms": {"p50": 32.9, "p95": 36.0, "p99": 40.5, "max": 1260.0, "n": 98},
    "ours_ms": {"p50": 6.412, "p95": 9.0, "p99": 11.25, "max": 1240.0, "n": 100},
    "stages_ms": {
        "detect": 0.8,
        "request": 1.0,
        "lock": 0.1,
        "plan": 3.2,
        "deliver": 1.1,
        "lane": 0.7,
        "broker": 25.4,
    },
    "divergence": {"missing": 0, "orphan": 0, "volume_mismatch": 0},
    "duplicates": 0,
    "unexplained": 0,
    "platforms": {"paper": {"accounts": 7, "completed": 100}},
    "vps": 3,
}


def test_a_clean_run_ends_in_a_sentence_and_a_table() -> None:
    assert summary(FIGURES).splitlines() == [
        "All 100 orders were carried out, none twice. Every follower holds what it should.",
        "",
        "master's trades    18",
        "trades             105 (one per follower): 99 copied, 6 nothing to do",
        "executions         100 completed, 0 expired, 1 cancelled, 0 in flight",
        "rejected           none",
        "not copied         none",
        "success rate       100 %",
        "followers' books   as expected",
        "duplicate orders   0",
        "unexplained trades 0",
        "",
        "time in ms          p50  p95  p99    max  orders",
        "whole, fill → fill   33   36   40  1,260      98",
        "ours, seen → sent   6.4  9.0   11  1,240     100",
        "  detect            0.8",
        "  request           1.0",
        "  lock              0.1",
        "  plan              3.2",
        "  deliver           1.1",
        "  lane              0.7",
        "  broker             25",
    ]


def test_problems_are_named() -> None:
    figures = FIGURES | {
        "executions": {"completed": 2, "rejected": {"no_money": 3, "fifo": 1}, "expired": 1, "cancelled": 0, "open": 2},
        "not_copied": {"too_old": 1, "no_money": 4},
        "success_rate": 0.285714,
        "divergence": {"missing": 1, "orphan": 0, "volume_mismatch": 2},
        "failover": {"seconds": 17.204, "accounts": 2},
    }
    text = summary(figures)
    assert text.startswith("Something is wrong: 1 copy is missing, 2 copies have a wrong volume.\n")
    for line in (
        "rejected           1 fifo, 3 no money",
        "not copied         4 no money, 1 too old",
        "success rate       28.57 %",
        "followers' books   not as expected: 1 missing, 0 orphaned, 2 with a wrong volume",
        "failover           other VPSes took over 2 accounts within 17.2 s",
    ):
        assert line in text


def test_the_sentence_counts_what_was_not_carried_out() -> None:
    executions = {"completed": 2, "rejected": {"no_money": 3, "fifo": 1}, "expired": 1, "cancelled": 0, "open": 2}
    assert summary(FIGURES | {"executions": executions}).startswith("2 of 9 orders were carried out; below is what")


def test_a_run_without_any_order_has_no_times() -> None:
    nothing = {"p50": None, "p95": None, "p99": None, "max": None, "n": 0}
    figures = FIGURES | {
        "executions": {"completed": 0, "rejected": {}, "expired": 0, "cancelled": 0, "open": 0},
        "success_rate": None,
        "whole_ms": nothing,
        "ours_ms": nothing,
        "stages_ms": dict.fromkeys(STAGES),
        "failover": {"seconds": None, "accounts": 2},
    }
    text = summary(figures)
    assert "None " not in text
    assert "None\n" not in text
    assert text.startswith("No order was sent: there was nothing to copy.\n")
    assert text.endswith("times: no order was completed, so there are none")
    assert "failover           2 accounts had not been taken over when the run ended" in text
