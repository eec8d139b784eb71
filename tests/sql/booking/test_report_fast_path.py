"""Reports taken at once leave every row as reports taken one after the other do: the short cut is no rule of its
own."""

import copy
import random
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld
from spoiled_json import JUNK, paths, spoiled

pytestmark = pytest.mark.own_database

TABLES = (
    "public.positions", "public.position_links", "private.link_legs", "public.trade_execution_queue",
    "private.net_ledgers",
    "public.copy_outcomes", "public.trade_events", "public.alerts", "private.quarantine", "public.account_symbols",
)  # fmt: skip
#: told by the clock of the wall, or numbers of rows that are made along the way
IGNORED = {
    "decided_at", "offered_at", "send_before", "received_at", "created_at", "updated_at", "planned_at", "requested_at",
    "request_ms", "lock_ms",
}  # fmt: skip
NAMES = ("F", "G", "H", "K", "N")
ONE_BY_ONE = (
    "create or replace function private.take_reports_fast(p_vps uuid, p_reports jsonb, p_now timestamptz, out taken"
    " bigint[],"
    " out results jsonb, out link_ids bigint[]) language plpgsql set search_path = ''"
    " as $$ begin return; end $$"
)
STILL = (
    "create or replace function private.lock_accounts(p_accounts uuid[]) returns timestamptz language plpgsql"
    " set search_path = '' as $$ begin return '{now}'::timestamptz; end $$"
)


class Broker:
    """Makes reports of whatever is in flight: most of them usual, the others wrong, late, partial, repeated or
    strange."""

    def __init__(self, world: NettingWorld, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.told: list[dict[str, Any]] = []

    def reports(self) -> list[dict[str, Any]]:
        batch = [
            self.report(e) for e in self.world.open_executions() if e["status"] == "queued" and self.rng.random() < 0.8
        ]
        if self.told and self.rng.random() < 0.2:
            batch.append(
                self.rng.choice(self.told) | self.rng.choice([{}, {"seq": next(self.world._seq)}, {"attempt": 2}])
            )
        self.rng.shuffle(batch)
        self.told += batch
        return batch

    def report(self, e: dict[str, Any]) -> dict[str, Any]:
        return self.strange(self.usual(e)) if self.rng.random() < 0.25 else self.usual(e)

    def usual(self, e: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat()
        opens = e["action"] in ("open", "increase", "place")
        ticket = self.world.ticket() if opens else e["ticket"] or self.world.ticket()
        held = (
            self.world.one(
                "select lots from public.positions where account_id = %s and ticket = %s", e["account_id"], ticket
            )
            or 0
        )
        lots = {
            "close": "0",
            "cancel": "0",
            "reduce": str(max(0, held - e["lots"])),
            "modify": str(held),
            "amend": str(held),
        }
        levels = {level: None if e[level] is None else str(e[level]) for level in ("sl", "tp")}
        place = {"kind": "order", "order_type": e["order_type"]} if e["action"] in ("place", "amend", "cancel") else {}
        state = self.world.position(
            lots.get(e["action"], str(e["lots"])), e["side"], ticket, tag=str(e["id"]), **levels, **place
        )
        return {
            "account_id": str(e["account_id"]), "session": 1, "seq": next(self.world._seq),
            "execution_id": str(e["id"]),
            "attempt": e["attempt"], "outcome": "completed", "filled_lots": str(e["lots"]), "price": "1.10100",
            "positions": [state], "received_at": now, "sent_at": now, "done_at": now,
        }  # fmt: skip

    def strange(self, r: dict[str, Any]) -> dict[str, Any]:
        p = r["positions"][0]
        if p["lots"] == "0" and self.rng.random() < 0.3:
            return r | {"seq": 1}  # the mirror has heard something newer
        changes: list[dict[str, Any]] = [
            {"outcome": "rejected", "reason": "requote", "retryable": True, "positions": []},
            {"outcome": "rejected", "reason": "no_money", "positions": []},
            {
                "outcome": "rejected",
                "reason": "invalid_stops",
                "positions": [],
                "quote": {"bid": "1.1", "ask": "1.1001"},
            },
            {"outcome": "unknown", "positions": []},
            {"outcome": "cancelled", "reason": "cancel_requested", "positions": []},
            {"positions": []},
            {"adopted": True, "message": "found by its tag", "retryable": False, "reason": None, "quote": None},
            {"filled_lots": None, "price": None, "received_at": None, "sent_at": None, "done_at": None},
            {"positions": [p | {"sl": None, "tp": "0"}]},
            {
                "positions": [
                    p
                    | {"sl": "1.05", "tp": "1.2", "magic": "7", "comment": "copy", "opened_at": "2026-01-01T00:00:00Z"}
                ]
            },
            {"positions": [p | {"lots": "0.01"}], "filled_lots": "0.01"},
            {"positions": [p | {"side": "sell"}]},
            {"positions": [p | {"symbol": "GBPUSD"}]},
            {"positions": [p | {"tag": None}]},
            {"positions": [p, self.world.position("0.50")]},
            {"positions": [p | {"ticket": self.world.ticket(), "replaces": p["ticket"]}]},
            {"positions": [p | {"ticket": "shared"}]},
            {"seq": 1},
            {"session": 2},
            {"attempt": r["attempt"] + 1},
            {"account_id": self.world.accounts["M"]},
        ]
        return r | self.rng.choice(changes)


@pytest.fixture
def world(connection: psycopg.Connection[Any]) -> NettingWorld:
    w = NettingWorld(connection)
    w.add_account("M", vps="a")
    for name in NAMES:
        w.add_account(name, vps="b", mode="netting" if name == "N" else "hedging")
    for name, settings in (("F", {}), ("G", {"sizing_value": "2"}), ("H", {"sl_mode": "distance"}), ("N", {})):
        w.copy("M", name, **settings)
    w.copy("F", "K")
    return w


def everything(world: NettingWorld, newest: int) -> dict[str, list[dict[str, Any]]]:
    """The planner's rows, but times of the wall. Executions above `newest` were planned just now: in which order is all
    one."""

    def plain(table: str, row: dict[str, Any]) -> dict[str, Any]:
        numbers = ("id", "step_id", "after_id") if table == "public.trade_execution_queue" else ("execution_id",)
        return {
            k: "new" if k in numbers and v is not None and v > newest else v
            for k, v in row.items()
            if k not in IGNORED and (table, k) != ("public.alerts", "id")
        }

    def rows(table: str) -> list[dict[str, Any]]:
        return [plain(table, each["row"]) for each in world.rows(f"select to_jsonb(t) as row from {table} t")]

    return {table: sorted(rows(table), key=lambda row: str(sorted(row.items()))) for table in TABLES}


class Undone(Exception):
    """Ends a transaction that shall leave nothing."""


def tell(
    world: NettingWorld, reports: list[dict[str, Any]], now: datetime, *, one_by_one: bool
) -> tuple[Any, dict[str, list[dict[str, Any]]]]:
    """What the call answers and what it leaves, of which nothing stays."""
    sequences = world.rows("select schemaname, sequencename, last_value from pg_sequences where last_value is not null")
    newest = max(each["last_value"] for each in sequences if each["sequencename"] == "trade_execution_queue_id_seq")
    answer: Any = None
    left: dict[str, list[dict[str, Any]]] = {}
    try:
        with world.db.transaction():
            world.db.execute(STILL.format(now=now).encode())
            world.db.execute("select setseed(0.5)")
            if one_by_one:
                world.db.execute(ONE_BY_ONE)
            answer = world.as_agent("F", "report_executions", {"reports": reports})
            world.db.execute("reset role")
            left = everything(world, newest)
            raise Undone
    except Undone:
        for each in sequences:
            world.db.execute(
                "select setval(%s, %s)", (f"{each['schemaname']}.{each['sequencename']}", each["last_value"])
            )
    return answer, left


Left = tuple[Any, dict[str, list[dict[str, Any]]]]


def both_ways(world: NettingWorld, reports: list[dict[str, Any]]) -> tuple[Left, Left]:
    now = datetime.now(UTC)
    return tell(world, reports, now, one_by_one=False), tell(world, reports, now, one_by_one=True)


def differences(quick: dict[str, list[dict[str, Any]]], slow: dict[str, list[dict[str, Any]]]) -> list[Any]:
    found: list[Any] = [
        (table, len(quick[table]), len(slow[table])) for table in TABLES if len(quick[table]) != len(slow[table])
    ]
    for table in TABLES:
        for one, other in zip(quick[table], slow[table], strict=False):
            if one != other:
                found.append((table, {k: (one[k], other[k]) for k in one if one[k] != other[k]}))
    return found


def taken_at_once(world: NettingWorld, reports: list[dict[str, Any]]) -> int:
    count = 0
    try:
        with world.db.transaction():
            row = world.one(
                "select coalesce(cardinality(taken), 0) from private.take_reports_fast(%s, %s, now())",
                world.vps["b"], psycopg.types.json.Jsonb(reports),
            )  # fmt: skip
            count = int(row)
            raise Undone
    except Undone:
        return count


def master_acts(world: NettingWorld, held: list[dict[str, Any]], rng: random.Random) -> None:
    kind = rng.choice(["opened"] * 3 + ["modified", "closed", "reduced", "increased", "nothing"])
    if kind == "opened" or not held:
        levels = rng.choice([{}, {"sl": "1.05000", "tp": "1.20000"}, {"sl": "1.05000"}])
        held.append(world.opened("M", rng.choice(["0.10", "1.00"]), **levels))
    elif kind != "nothing":
        position = held.pop(rng.randrange(len(held)))
        lots = {"closed": "0", "reduced": "0.05", "increased": "3.00"}.get(kind, position["lots"])
        position = (
            position | {"lots": lots} | ({"sl": rng.choice(["1.04000", "1.06000", None])} if kind == "modified" else {})
        )
        world.send("M", world.event(kind, position))
        if kind != "closed":
            held.append(position)


@pytest.mark.parametrize("seed", range(6))
def test_random_batches_leave_the_same_rows_taken_at_once_and_one_by_one(world: NettingWorld, seed: int) -> None:
    rng = random.Random(seed)
    broker = Broker(world, rng)
    held: list[dict[str, Any]] = []
    at_once = told = 0
    for step in range(25):
        for _ in range(rng.randrange(1, 4)):
            master_acts(world, held, rng)
        reports = broker.reports()
        if not reports:
            continue
        quick, slow = both_ways(world, reports)
        assert quick[0]["results"] == slow[0]["results"], f"seed {seed}, step {step}"
        assert differences(quick[1], slow[1]) == [], f"seed {seed}, step {step}: {reports}"
        assert len(quick[0]["executions"]) == len(slow[0]["executions"])
        at_once += taken_at_once(world, reports)
        told += len(reports)
        world.as_agent("F", "report_executions", {"reports": reports})
        world.db.execute("update public.trade_execution_queue set next_attempt_at = now() where status = 'retrying'")
        world.db.execute("select private.maintain_executions()")
    assert at_once > told / 5, "the short cut is taken"


def test_common_reports_are_taken_at_once(world: NettingWorld) -> None:
    """An open, a change and a close of hedging followers that nobody copies; the others go their own way in the same
    call."""
    broker = Broker(world, random.Random(0))
    master = world.opened("M", "1.00", sl="1.05000")
    for change in ("opened", "modified", "closed"):
        if change != "opened":
            master |= {"sl": "1.06000"} | ({"lots": "0"} if change == "closed" else {})
            world.send("M", world.event(change, master))
        reports = [broker.usual(e) for name in NAMES for e in world.open_executions(name)]
        usual = [r for r in reports if r["account_id"] in (world.accounts["G"], world.accounts["H"])]
        assert len(usual) == 2
        assert taken_at_once(world, usual) == 2, change
        results = world.as_agent("F", "report_executions", {"reports": reports})["results"]
        assert [(r["execution_id"], r["status"]) for r in results] == [(r["execution_id"], "accepted") for r in reports]
        world.settle()


def test_a_report_of_a_wrong_form_is_refused_as_it_is_one_by_one(world: NettingWorld) -> None:
    world.opened("M", "1.00", sl="1.05000")
    (execution,) = world.open_executions("G")
    good = Broker(world, random.Random(1)).usual(execution) | {
        "quote": None,
        "retryable": False,
        "adopted": False,
        "message": "",
        "reason": None,
    }
    assert taken_at_once(world, [good]) == 1
    differ = []
    for path in paths(good):
        for junk in [each for each in JUNK if each != "now"]:  # which is another moment each time
            if not path:
                continue
            report = spoiled(copy.deepcopy(good), path, junk)
            quick, slow = both_ways(world, [report])
            if (quick[0]["results"], quick[1]) != (slow[0]["results"], slow[1]):
                differ.append((path, junk, quick[0]["results"], slow[0]["results"]))
    assert differ == []
