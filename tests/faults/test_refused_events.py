"""An event with a text that the database cannot store: it holds up nobody, is kept, and what it said is copied.

Agents clean such texts (tests/scenarios/odd_text.yaml), so the test makes the database refuse a text that they let
through.
"""

import sqlite3
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
import pytest_asyncio
from fault_harness import Ground, until

from agent.paper.client import ticket_of

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

DEFINITION = "select pg_get_functiondef('public.queue_trade_copy(jsonb)'::regprocedure) as text"
#: the word stands for a character that jsonb cannot hold: the call is refused before anything of it is stored
PICKY = """
create or replace function public.queue_trade_copy(p_events jsonb) returns jsonb
language plpgsql set search_path = '' as $$
begin
  if exists (select from jsonb_array_elements(p_events -> 'events') e
    where e ->> 'type' in ('reduced', 'closed') and e::text like '%%unstorable%%') then
    raise exception using errcode = '22P05', message = 'unsupported Unicode escape sequence';
  end if;
  return private.queue_trade_copy(p_events);
end $$"""
ALERTS = "select severity from public.alerts where account_id = %(account)s::uuid and reason = 'event_refused'"


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def picky(ground: Ground) -> AsyncIterator[None]:
    whole = str(await ground.one(DEFINITION))
    await ground.observer.rows(PICKY)
    yield
    await ground.observer.rows(whole)


@pytest.mark.covers("R25")
async def test_a_close_that_cannot_be_stored_is_copied_and_stops_no_other_account(ground: Ground) -> None:
    shared, away = await ground.vps("shared"), await ground.vps("away")
    async with ground.desk(shared, [away]) as odd, ground.desk(shared, [away]) as usual:
        bought = [
            ticket_of(
                await ground.paper.market(odd.master.login, "EURUSD", "buy", Decimal("0.30"), comment="unstorable")
            )
            for _ in range(2)
        ]
        await odd.holds(2)
        other = await usual.open()
        await usual.holds(1)
        await odd.close(bought[0])
        await usual.close(other)
        await odd.close(bought[1], lots="0.10")
        await usual.holds(0)
        await odd.holds(1)

        async def reduced() -> bool:
            [held] = (await ground.paper.book(odd.follower.login)).positions
            return held.lots == Decimal("0.20")

        await until(reduced, "the reduction to be copied")
        await odd.close(bought[1])
        await odd.holds(0)
        await odd.assert_money_laws()
        await usual.assert_money_laws()
        assert [row["severity"] for row in await ground.rows(ALERTS, account=odd.master.account_id)] == ["critical"]
        assert await ground.rows(ALERTS, account=usual.master.account_id) == []
    await ground.kill(shared)  # the journal belongs to its agent alone
    journal = sqlite3.connect(shared.data_dir / "journal.sqlite3")
    kept = journal.execute("select kind, reason, body from refused").fetchall()
    journal.close()
    assert {kind for kind, _, _ in kept} == {"event"}
    assert all("22P05" in reason and "unstorable" in body for _, reason, body in kept)
