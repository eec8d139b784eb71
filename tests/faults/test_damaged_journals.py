"""A damaged journal: no trade is lost, no order is sent twice, and copying resumes within 20 seconds."""

import os
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from fault_harness import Ground, until

from agent.paper.profile import Profile

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SLOW = Profile(latency_ms_min=600, latency_ms_max=600, keeps_comments=False)
AGAIN_S = 20


def unreadable_rows(journal: Path) -> None:
    """Every row of orders, outcomes and events."""
    connection = sqlite3.connect(journal)
    with connection:
        assert connection.execute(
            "update executions set body = '{', state = 'answered', report = '{' where true"
        ).rowcount
        connection.execute("insert into events values ('nobody', 1, 1, 'no event', 'never')")
    connection.close()


def rows_without_fields(journal: Path) -> None:
    connection = sqlite3.connect(journal)
    with connection:
        damage = (
            "update executions set body = json_remove(body, '$.send_before'), state = 'begun', report = null where true"
        )
        assert connection.execute(damage).rowcount
    connection.close()


def another_layout(journal: Path) -> None:
    connection = sqlite3.connect(journal)
    connection.execute("pragma user_version = 99")
    connection.close()


def no_database(journal: Path) -> None:
    journal.write_bytes(b"this is not a database" * 1_000)


def log_without_end(journal: Path) -> None:
    """Damage that SQLite does not notice: the last orders are missing."""
    log = journal.with_name(f"{journal.name}-wal")
    os.truncate(log, log.stat().st_size // 2)


def garbage_for_a_log(journal: Path) -> None:
    log = journal.with_name(f"{journal.name}-wal")
    log.write_bytes(b"\xff" * log.stat().st_size)


@pytest.mark.parametrize(
    "damage", [unreadable_rows, rows_without_fields, another_layout, no_database, log_without_end, garbage_for_a_log]
)
async def test_an_agent_whose_journal_is_damaged_trades_again_and_sends_nothing_twice(
    ground: Ground, damage: Callable[[Path], None]
) -> None:
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away], profile=SLOW) as desk:
        ended = await desk.open("USDJPY", "0.20")
        await desk.holds(1)
        await desk.assert_money_laws()
        ticket = await desk.open(lots="0.40")
        number = await desk.first_execution()
        await ground.paper.wait_for_request(desk.follower.login, number)
        await ground.kill(away)
        damage(away.data_dir / "journal.sqlite3")
        await desk.close(ended)
        ground.farm.start(away)

        async def traded() -> bool:
            """The order that was sent is known, and the close is copied."""
            held = (await ground.paper.book(desk.follower.login)).positions
            rows = {row["id"]: row["status"] for row in await ground.executions(desk.follower)}
            return rows[number] == "completed" and [position.symbol for position in held] == ["EURUSD"]

        await until(traded, f"the follower to be as its master within {AGAIN_S} s", limit_s=AGAIN_S)
        await desk.close(ticket, "0.10")
        await desk.assert_money_laws()
        [copy] = (await ground.paper.book(desk.follower.login)).positions
        assert copy.lots == Decimal("0.30")
        await desk.close(ticket)
