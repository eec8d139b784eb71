"""Faults planted in the planner's own code, and what is seen of them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from netting_harness import NettingWorld
from planner_harness import World

from agent.stack.database import Database

DUE = "update private.quarantine set retry_at = now() where true"


@pytest.fixture
def farm_of_three(database: Database) -> Iterator[NettingWorld]:
    """M is copied by F, G and H, hedging, all on one VPS, and by the netting account N."""
    with database.connect() as connection:
        world = NettingWorld(connection)
        world.add_account("M", vps="a")
        for name in ("F", "G", "H"):
            world.add_account(name, vps="b")
            world.copy("M", name)
        yield world
        assert world.unexplained() == 0


@contextmanager
def planted(world: World, function: str, condition: str, state: str = "22012") -> Iterator[None]:
    """While it lasts, the function raises where the condition holds of its parameters."""
    definition = world.one(f"select pg_get_functiondef('private.{function}'::regproc)")
    fault = f"\nbegin\n  if {condition} then raise exception using errcode = '{state}', message = 'planted'; end if;\n"
    broken = re.sub(r"\nbegin\n", lambda _: fault, definition, count=1)
    assert broken != definition
    world.db.execute(broken.encode())
    try:
        yield
    finally:
        world.db.execute(definition)


def filled(world: World, execution: dict[str, Any], *, price: str = "1.10000") -> dict[str, Any]:
    """The report of an open or close that the broker carried out."""
    now = datetime.now(UTC).isoformat()
    opens = execution["action"] == "open"
    ticket = world.ticket() if opens else execution["ticket"]
    lots = str(execution["lots"])
    return {
        "account_id": str(execution["account_id"]), "session": 1, "seq": next(world._seq),
        "execution_id": str(execution["id"]),
        "attempt": execution["attempt"], "outcome": "completed", "filled_lots": lots, "price": price,
        "positions": [world.position(lots if opens else "0", execution["side"], ticket, tag=str(execution["id"]))],
        "received_at": now, "sent_at": now, "done_at": now,
    }  # fmt: skip


def tell(world: World, reports: Sequence[dict[str, Any]]) -> list[tuple[str, str | None]]:
    answer = world.as_agent("F", "report_executions", {"reports": list(reports)})
    return [(result["status"], result["code"]) for result in answer["results"]]


def alerts(world: World) -> list[tuple[str, str, str]]:
    return [
        (r["name"], r["reason"], r["severity"])
        for r in world.rows(
            "select a.name, x.reason, x.severity from public.alerts x join public.trading_accounts a on a.id ="
            " x.account_id"
            " where x.kind = 'planner' order by 1, 2"
        )
    ]


def faults(world: World) -> list[tuple[str, str]]:
    found = (
        "select f.kind, a.name from private.quarantine f"
        " join public.trading_accounts a on a.id = f.account_id order by 1, 2"
    )
    return [(r["kind"], r["name"]) for r in world.rows(found)]


def upkeep(world: World) -> None:
    """Everything that was set aside is due now."""
    world.db.execute(DUE)
    world.db.execute("select private.maintain_executions()")


def is_account(world: World, expression: str, name: str) -> str:
    return f"{expression} = '{world.accounts[name]}'"
