"""A benchmark's figures for people: a sentence, counts and a table, and never a value as Python writes it."""

from collections.abc import Mapping

import pytest

from agent.bench.report import report

SPREAD: dict[str, object] = {"p50": 6.412, "p95": 9.0, "p99": 11.25, "max": 1240.0, "n": 300, "histogram": {"<=8": 299}}
NONE: dict[str, object] = {"p50": None, "p95": None, "p99": None, "max": None, "n": 0, "histogram": {}}
ORDERS: dict[str, object] = {
    "orders": 300, "latency_ms": SPREAD, "ours_ms": SPREAD, "whole_ms": NONE, "from_schedule_ms": SPREAD,
    "stages_ms": {"plan": SPREAD, "deliver": NONE},
}  # fmt: skip
MACHINE: dict[str, object] = {
    "commit": None, "cpu": "A processor", "cores": 2, "load_before": [0.1, 0.25, 1.0], "system": "Linux-6",
    "versions": {"tradecopier": "0.1.0", "python": "3.12.1", "postgres": "17.2"},
}  # fmt: skip
WAVE: dict[str, object] = {"expected": 200, "lost": 0, "twice": 0, "last_sent_ms": SPREAD, "done_ms": SPREAD, **ORDERS}

FIGURES: Mapping[str, dict[str, object]] = {
    "copy": {
        "samples": 300, "rate": 20.0, **ORDERS, "ours_true_clock_ms": SPREAD | {"p50": 6.9},
        "clock_offsets_ms": {"vps-1": -0.104, "vps-2": None},
    },
    "fanout": {"samples": 20, "rate": 0.5, "followers": {"10": {"events": 20, **ORDERS}, "500": ORDERS}},
    "burst": {"samples": 3, "positions": 50, "followers": 40, "vps": 3, "opens": WAVE, "closes": WAVE},
    "floods": {"samples": 40, "rate": 10.0, "floods": {"slow_headers": {"without": ORDERS, "with": ORDERS}}},
    "queue": {
        "jobs_per_round": 4000, "rounds": 5, "connections": 4, "batch": 40,
        "queues": {
            "tradecopier_beside": {
                "jobs_per_second": 12345.6, "rounds": [1.0, 2.0], "batch_ms": {"enqueue": SPREAD}, "versions": {}
            },
            "pgqueuer": {
                "jobs_per_second": 999.5, "rounds": [1.0, 2.0], "batch_ms": {"enqueue": SPREAD},
                "versions": {"pgqueuer": "0.2"},
            },
        },
        "ratios": {"tradecopier_beside/pgqueuer": 12.35},
    },
    "history": {"rows": 2_000_000, "rounds": 60, "followers": 20, "with": SPREAD, "without": SPREAD, "p50_ratio": 1.02},
    "tenants": {
        "samples": 100, "rate": 2.0, "closes_ms": {"alone": SPREAD, "reads": SPREAD},
        "answers": {"save_copier 200": 12, "save_copier 429": 3},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_report_begins_with_a_sentence_and_shows_no_raw_value(name: str) -> None:
    text = report({"benchmark": name, **FIGURES[name], "machine": MACHINE})
    assert text.splitlines()[0].endswith(".")
    for raw in ("{", "}", "[", "]", "'", "None", "_"):
        assert raw not in text
    assert text.splitlines()[-3:] == [
        "machine   A processor, 2 cores, load before 0.1, 0.25, 1",
        "system    Linux-6",
        "versions  tradecopier 0.1.0, python 3.12.1, postgres 17.2, commit –",
    ]


def test_times_stand_in_one_table() -> None:
    assert report({"benchmark": "copy", **FIGURES["copy"], "machine": MACHINE}).splitlines()[:-4] == [
        "300 orders were copied: half were sent within 6.4 ms of the change at the master, 95 % within 9.0 ms;"
        " by the one clock of the brokers half within 6.9 ms.",
        "",
        "samples              300",
        "rate                 20",
        "orders               300",
        "clock offsets vps-1  -0.104",
        "clock offsets vps-2  –",
        "",
        "time in ms       p50  p95  p99    max    n",
        "ours             6.4  9.0   11  1,240  300",
        "whole              –    –    –      –    0",
        "from schedule    6.4  9.0   11  1,240  300",
        "stages plan      6.4  9.0   11  1,240  300",
        "stages deliver     –    –    –      –    0",
        "ours true clock  6.9  9.0   11  1,240  300",
    ]


def test_counts_keep_every_value() -> None:
    text = report({"benchmark": "tenants", **FIGURES["tenants"], "machine": MACHINE})
    assert "answers save copier 429  3" in text
    text = report({"benchmark": "queue", **FIGURES["queue"], "machine": MACHINE})
    assert "queues tradecopier beside jobs per second  12,346" in text
    assert "queues pgqueuer versions                   pgqueuer 0.2" in text
