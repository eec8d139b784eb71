"""Every benchmark runs once with few samples, so that it keeps working. No test depends on timings."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from agent.bench.burst import count_orders
from agent.bench.copying import Trades, order_of, summarise, summarise_last
from agent.bench.peers import ENVIRONMENT, peer_python
from agent.bench.true_clock import arrivals_of, fills
from agent.failure import Failure
from agent.paper.records import Deal, DealEntry, RequestRecord
from agent.stack.schema import project_root
from agent.testbed.figures import STAGES

COMMAND = [sys.executable, "-c", "from agent.cli import main; main()"]
DUE = datetime(2026, 1, 1, 12, tzinfo=UTC)
SPREAD = {"p50", "p95", "p99", "max", "n", "histogram"}

e2e = pytest.mark.e2e
patient = pytest.mark.timeout(300)


def bench(*arguments: str) -> dict[str, object]:
    """Run `tradecopier bench …`; the figures that it wrote."""
    file = Path(arguments[-1])
    done = subprocess.run(
        [*COMMAND, "bench", *arguments[:-1], "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return cast("dict[str, object]", json.loads(file.read_text()))


def part(figures: dict[str, object], *names: str) -> dict[str, object]:
    for name in names:
        figures = cast("dict[str, object]", figures[name])
    return figures


@e2e
@patient
def test_copy_runs_with_few_samples(tmp_path: Path) -> None:
    found = bench("copy", "--samples", "10", "--rate", "10", str(tmp_path / "copy.json"))
    assert found["orders"] == 10
    assert {"latency_ms", "from_schedule_ms", "machine"} <= set(found)
    assert list(part(found, "stages_ms")) == ["detect", "request", "lock", "plan", "deliver", "lane", "broker"]
    for name in ("ours_ms", "whole_ms", "ours_true_clock_ms"):
        assert part(found, name)["n"] == 10
    assert set(part(found, "clock_offsets_ms")) == {"vps-1", "vps-2"}


def row(**changes: object) -> dict[str, object]:
    """A row of `copying.ORDERS`."""
    times = {f"{stage}_ms": Decimal(1) for stage in STAGES} | {"ours_ms": Decimal(5), "whole_ms": Decimal(7)}
    return {"id": 7, "sent_at": DUE + timedelta(milliseconds=9), **times, **changes}


def test_an_order_that_was_never_sent_counts_and_has_no_times() -> None:
    """A close of what was gone already is completed without being sent."""
    nothing = dict.fromkeys([*(f"{stage}_ms" for stage in STAGES), "ours_ms", "whole_ms", "sent_at"])
    orders = [order_of(row(), 0, DUE), order_of(row(**nothing), 1, DUE)]
    found = summarise(orders)
    assert (found["orders"], found["unsent"]) == (2, 1)
    assert part(found, "ours_ms") | {"histogram": None} == {
        "p50": 5, "p95": 5, "p99": 5, "max": 5, "n": 1, "histogram": None,
    }  # fmt: skip
    assert [part(found, name)["n"] for name in ("whole_ms", "from_schedule_ms")] == [1, 1]
    assert {part(found, "stages_ms", stage)["n"] for stage in STAGES} == {1}
    assert part(summarise_last(orders), "last_sent_ms")["n"] == 1


def test_the_true_clock_is_that_of_the_brokers() -> None:
    """Fill at 0, seen 2 ms later, the order at its broker at 9 ms: 7 ms, whatever the agents believe."""
    trades = Trades(cast("Any", None), cast("Any", None), 1)
    trades.events = {("5", "open"): 0, ("5", "close"): 1}
    deals = [deal("in", 0), deal("out", 1000), deal("balance", 5)]
    assert fills(deals, trades) == {0: DUE, 1: DUE + timedelta(seconds=1)}
    first, again = order(1, 11), replace(order(2, 11), at=DUE)
    assert arrivals_of([first, again]) == {11: first.at}


def deal(entry: DealEntry, ms: int) -> Deal:
    ticket = None if entry == "balance" else "5"
    return Deal(number=1, at=DUE + timedelta(milliseconds=ms), entry=entry, reason="client", ticket=ticket)


@e2e
@patient
def test_fanout_runs_with_few_samples(tmp_path: Path) -> None:
    sizes = ["--followers", "3", "--followers", "6"]
    found = bench("fanout", "--samples", "2", "--rate", "2", *sizes, str(tmp_path / "fanout.json"))
    assert {size: part(found, "followers", size)["orders"] for size in ("3", "6")} == {"3": 6, "6": 12}


@e2e
@patient
def test_no_copy_is_lost_while_the_gateway_is_flooded(tmp_path: Path) -> None:
    kinds = ("slow_headers", "large_bodies", "joins")
    found = bench(
        "floods",
        "--samples",
        "40",
        "--rate",
        "20",
        *(f"--flood={kind}" for kind in kinds),
        str(tmp_path / "floods.json"),
    )
    assert {kind: part(found, "floods", kind, "with")["orders"] for kind in kinds} == dict.fromkeys(kinds, 40)


@patient
def test_history_runs_with_few_rows(tmp_path: Path) -> None:
    found = bench("history", "--rows", "20000", "--rounds", "2", "--followers", "3", str(tmp_path / "history.json"))
    assert part(found, "with")["n"] == part(found, "without")["n"] == 4
    assert float(str(found["p50_ratio"])) > 0


@e2e
@patient
def test_burst_runs_with_few_samples_and_counts_every_order_at_the_brokers(tmp_path: Path) -> None:
    found = bench("burst", "--samples", "1", "--positions", "5", "--followers", "4", str(tmp_path / "burst.json"))
    assert found["vps"] == 3
    for wave in (part(found, "opens"), part(found, "closes")):
        assert (wave["expected"], wave["orders"], wave["lost"], wave["twice"]) == (20, 20, 0, 0)
        assert set(cast("dict[str, object]", wave["done_ms"])) == SPREAD


@e2e
@patient
def test_queue_runs_with_few_samples_on_every_contender(tmp_path: Path) -> None:
    try:
        peer_python()
    except Failure as missing:
        pytest.skip(str(missing))
    shape = ["--samples", "12", "--rounds", "1", "--connections", "2", "--batch", "3"]
    found = bench("queue", *shape, str(tmp_path / "queue.json"))
    assert found["jobs_per_round"] == 12
    queues = part(found, "queues")
    peers = {"procrastinate", "pgqueuer"}
    same_work = {f"{peer}_same_work" for peer in peers}
    assert set(queues) == {"tradecopier_beside", "tradecopier_isolated"} | peers | same_work
    for name in queues:
        assert cast("float", part(queues, name)["jobs_per_second"]) > 0
        assert set(part(queues, name, "batch_ms", "enqueue")) == SPREAD
    compared = {("tradecopier_beside", peer) for peer in peers} | {
        ("tradecopier_isolated", peer) for peer in peers | same_work
    }
    assert {tuple(pair.split("/")) for pair in part(found, "ratios")} == compared


def test_queue_says_what_is_missing_where_the_peers_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("agent.bench.peers.project_root", lambda: tmp_path)
    with pytest.raises(Failure) as missing:
        peer_python()
    assert missing.value.code == "TC661"
    assert "not installed" in missing.value.what
    assert "make bench" in missing.value.fix


def test_an_environment_without_the_peers_is_distinguished_from_one_with_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    python = tmp_path / ENVIRONMENT / name
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr("agent.bench.peers.project_root", lambda: tmp_path)
    with pytest.raises(Failure) as missing:
        peer_python()
    assert missing.value.code == "TC661"
    assert "No module named" in missing.value.what


def test_the_peers_are_no_dependency_of_the_product() -> None:
    peers = ("procrastinate", "pgqueuer", "asyncpg")
    assert all(f"\n{name}==" in (project_root() / "requirements-bench.lock").read_text() for name in peers)
    for name in ("requirements.lock", "requirements-nodeps.lock", "pyproject.toml"):
        lines = (project_root() / name).read_text().splitlines()
        assert not [line for line in lines if line.strip().strip('"').startswith(peers)]


def order(number: int, tag: int, outcome: Literal["executed", "refused"] = "executed") -> RequestRecord:
    return RequestRecord(
        number=number, at=datetime(2026, 1, 1, tzinfo=UTC), kind="market", origin="expert", symbol="EURUSD", side="buy",
        lots=None, tag=tag, outcome=outcome,
    )  # fmt: skip


def test_an_order_that_was_refused_or_never_came_is_lost() -> None:
    count = count_orders({"one": [order(1, 11), order(2, 12, "refused")], "two": []}, 2)
    assert (count.expected, count.carried_out, count.lost, count.twice) == (4, 1, 3, 0)


def test_a_second_order_for_a_copy_is_made_twice_under_the_same_number_or_another() -> None:
    assert count_orders({"one": [order(1, 11), order(2, 11), order(3, 12)]}, 2).twice == 1
    assert count_orders({"one": [order(1, 11), order(2, 12), order(3, 13)]}, 2).twice == 1


@e2e
@patient
def test_tenants_runs_with_a_small_loud_tenant(tmp_path: Path) -> None:
    """None of the other's orders is lost or made twice (the benchmark itself fails then), and each close was measured:
    none starved. How long they took is printed by `make bench`."""
    sizes = [
        "--samples",
        "8",
        "--rate",
        "4",
        "--accounts",
        "4",
        "--followers",
        "6",
        "--seconds",
        "0.2",
        "--rows",
        "1000",
    ]
    found = bench("tenants", *sizes, str(tmp_path / "tenants.json"))
    closes = part(found, "closes_ms")
    assert set(closes) == {"alone", "limits", "fanout", "functions", "reads", "renamed"}
    assert {name: part(closes, name)["n"] for name in closes} == dict.fromkeys(closes, 2)
    answers = part(found, "answers")
    assert [name for name in answers if not name.endswith((" 200", " 400", " 429"))] == []
    assert {name.split()[0] for name in answers if name.endswith(" 200")} >= {
        "save_copier",
        "pause_account",
        "copier_drift",
    }
