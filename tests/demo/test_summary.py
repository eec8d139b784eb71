"""The demo's results as lines for people."""

from agent.demo.summary import summary

FIGURES: dict[str, object] = {
    "seconds": 6.0,
    "events": 18,
    "executions": {"completed": 100, "rejected": {}, "expired": 0, "cancelled": 1, "open": 0},
    "skipped": {},
    "success_rate": 1.0,
    "latency_ms": {"p50": 6.412, "p95": 9.0, "p99": 11.25, "max": 40.0, "n": 100},
    "stages_ms": {"decide": 3.2, "transport": 1.1, "broker": 5.0},
    "divergence": {"missing": 0, "orphan": 0, "volume_mismatch": 0},
    "duplicates": 0,
    "unexplained": 0,
    "platforms": {"paper": {"accounts": 7, "completed": 100}},
    "vps": 3,
}


def test_a_clean_run_is_shown_without_raw_values() -> None:
    assert summary(FIGURES).splitlines() == [
        "master's trades    18",
        "executions         100 completed, 0 expired, 1 cancelled, 0 in flight",
        "rejected           none",
        "not copied         none",
        "success rate       100 %",
        "latency            p50 6.4 ms, p95 9.0 ms, p99 11.2 ms, max 40.0 ms (100 orders, from detection to sending)",
        "stages (median)    decide 3.2 ms, transport 1.1 ms, broker 5.0 ms",
        "followers' books   as expected",
        "duplicate orders   0",
        "unexplained trades 0",
    ]


def test_problems_are_named() -> None:
    figures = FIGURES | {
        "executions": {"completed": 2, "rejected": {"no_money": 3, "fifo": 1}, "expired": 1, "cancelled": 0, "open": 2},
        "skipped": {"too_old": 1},
        "success_rate": 0.285714,
        "divergence": {"missing": 1, "orphan": 0, "volume_mismatch": 2},
        "failover": {"seconds": 17.204, "accounts": 2},
    }
    text = summary(figures)
    for line in (
        "rejected           1 fifo, 3 no_money",
        "not copied         1 too_old",
        "success rate       28.57 %",
        "followers' books   not as expected: 1 missing, 0 orphaned, 2 with a wrong volume",
        "failover           other VPSes took over 2 accounts within 17.2 s",
    ):
        assert line in text


def test_a_run_without_any_order_has_no_times() -> None:
    nothing = {"p50": None, "p95": None, "p99": None, "max": None, "n": 0}
    figures = FIGURES | {
        "success_rate": None,
        "latency_ms": nothing,
        "stages_ms": {"decide": None, "transport": None, "broker": None},
        "failover": {"seconds": None, "accounts": 2},
    }
    text = summary(figures)
    assert "None" not in text
    assert "latency            no completed orders" in text
    assert "failover           2 accounts had not been taken over when the run ended" in text
