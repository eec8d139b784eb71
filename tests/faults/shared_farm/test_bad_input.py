"""Laws 4.2 and 8: what is malformed or not the caller's is refused with a code, and nothing of it is written.

Every call takes the real path: over HTTP, through the gateway, as the agents and users of a running farm. Covered
elsewhere:
* every table and function × every kind of caller: tests/sql/test_rights.py
* every field of an event and a report: tests/sql/planner/test_planner.py; 10 MB at the gateway itself:
  tests/stack/test_rpc.py
* a file that is not an account statement: tests/e2e/test_demo.py
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import cast
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from fault_harness import Desk, Ground

from agent.failure import Failure

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

WRITTEN = """
  with mine as (select unnest(%(accounts)s::uuid[]) as id)
  select (select count(*) from public.trade_events e join mine on e.account_id = mine.id) as events,
    (select count(*) from public.trade_execution_queue q join mine on q.account_id = mine.id) as executions,
    (select count(*) from public.positions p join mine on p.account_id = mine.id) as positions,
    (select count(*) from public.position_links l join mine on l.follower_account_id = mine.id) as links,
    (select count(*) from public.copiers c join mine on c.master_account_id = mine.id) as copiers,
    (select count(*) from public.account_vps_assignments s join mine on s.account_id = mine.id) as assignments,
    (select sum(s.epoch) from public.account_vps_assignments s join mine on s.account_id = mine.id) as epochs"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def desk(ground: Ground) -> AsyncIterator[Desk]:
    """One master and follower for all tests: none of them may change anything."""
    home, away = await ground.vps("home"), await ground.vps("away")
    async with ground.desk(home, [away]) as desk:
        await desk.open(lots="0.20")
        await desk.holds(1)
        await desk.assert_money_laws()
        yield desk
        await desk.assert_money_laws()


async def written(ground: Ground, desk: Desk) -> dict[str, object]:
    [row] = await ground.rows(WRITTEN, accounts=[account.account_id for account in desk.accounts])
    return row


async def event(ground: Ground, desk: Desk, seq: int, **changed: object) -> dict[str, object]:
    """An event that the master's agent could send about its position, with the fields of `changed`."""
    [held] = (await ground.paper.book(desk.master.login)).positions
    now = datetime.now(UTC).isoformat()
    position = {
        "ticket": held.ticket, "kind": "position", "symbol": held.symbol, "side": held.side, "lots": str(held.lots),
        "price": str(held.price), "sl": None, "tp": None,
    }  # fmt: skip
    session = (await ground.assigned(desk.master))["session"]
    return {
        "session": session, "seq": seq, "type": "modified", "position": position | changed,
        "detected_at": now, "unchanged_at": now,
    }  # fmt: skip


async def call(ground: Ground, desk: Desk, events: list[object], **changed: object) -> dict[str, list[dict[str, str]]]:
    assigned = await ground.assigned(desk.master)
    argument = {"account_id": desk.master.account_id, "epoch": assigned["epoch"], "events": events, **changed}
    answer = await ground.testbed.call_as(str(assigned["agent"]), "queue_trade_copy", "p_events", argument)
    return cast(dict[str, list[dict[str, str]]], answer)


@pytest.mark.parametrize("lots", ["NaN", "-0.10", "Infinity", "0.1e999999", "", None, "0"])
async def test_one_malformed_event_of_ten_is_refused_and_the_others_are_accepted(
    ground: Ground, desk: Desk, lots: str | None
) -> None:
    first = 100_000 + 20 * ["NaN", "-0.10", "Infinity", "0.1e999999", "", None, "0"].index(lots)
    events: list[object] = [await event(ground, desk, first + n) for n in range(10)]
    events[4] = await event(ground, desk, first + 4, lots=lots)
    before = await written(ground, desk)
    results = (await call(ground, desk, events))["results"]
    assert [result["status"] for result in results].count("refused") == 1
    assert (results[4]["status"], results[4]["code"]) == ("refused", "TC401")
    assert results[4]["error"]
    assert [result["status"] for result in [*results[:4], *results[5:]]] == ["accepted"] * 9
    assert await written(ground, desk) == {**before, "events": cast(int, before["events"]) + 10}


@pytest.mark.parametrize(("size", "code"), [(10_500_000, "TC630"), (1_500_000, "TC002")])
async def test_a_payload_that_is_too_large_is_refused(ground: Ground, desk: Desk, size: int, code: str) -> None:
    before = await written(ground, desk)
    with pytest.raises(Failure) as refused:
        await call(ground, desk, [await event(ground, desk, 200_000, comment="x" * size)])
    assert refused.value.code == code
    assert await written(ground, desk) == before


async def test_malformed_json_is_refused(ground: Ground, desk: Desk) -> None:
    before = await written(ground, desk)
    stack = ground.testbed.stack
    headers = {"apikey": stack.secret_key, "content-type": "application/json"}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers) as http:
        answer = await http.post("/rest/v1/rpc/queue_trade_copy", content=b'{"p_events": {"lots": NaN}}')
    assert answer.status_code == 400
    assert answer.json()["code"] == "PGRST102"
    assert await written(ground, desk) == before


async def test_an_account_that_is_unknown_or_another_agents_is_refused(ground: Ground, desk: Desk) -> None:
    before = await written(ground, desk)
    good = await event(ground, desk, 300_000)
    for account in (str(uuid4()), desk.follower.account_id):
        with pytest.raises(Failure) as refused:
            await call(ground, desk, [good], account_id=account)
        assert refused.value.code == "TC103"
    for wrong, code in (
        ({"account_id": "the other one"}, "TC001"),
        ({"epoch": "3 or so"}, "TC001"),
        ({"epoch": 99}, "TC103"),
    ):
        with pytest.raises(Failure) as refused:
            await call(ground, desk, [good], **wrong)
        assert refused.value.code == code
    never = (await call(ground, desk, [{**good, "session": 10**9}]))["results"]
    assert (never[0]["status"], never[0]["code"]) == ("refused", "TC402")
    assert await written(ground, desk) == {**before, "events": cast(int, before["events"]) + 1}


async def test_another_agents_execution_cannot_be_reported(ground: Ground, desk: Desk) -> None:
    [execution] = await ground.executions(desk.follower)
    now = datetime.now(UTC).isoformat()
    report = {
        "account_id": desk.follower.account_id, "session": 1, "seq": 1, "execution_id": str(execution["id"]),
        "attempt": 1, "outcome": "rejected", "reason": "rejected", "positions": [],
        "received_at": now, "sent_at": now, "done_at": now,
    }  # fmt: skip
    stranger = str((await ground.assigned(desk.master))["agent"])
    answer = await ground.testbed.call_as(stranger, "report_executions", "p_reports", {"reports": [report]})
    [result] = cast(dict[str, list[dict[str, str]]], answer)["results"]
    assert result["status"] == "refused"
    assert result["code"].startswith("TC")
    assert await ground.executions(desk.follower) == [execution]


async def test_someone_elses_account_is_refused_to_users(ground: Ground, desk: Desk) -> None:
    before = await written(ground, desk)
    stranger = await ground.farm.backend.sign_up(f"stranger-{uuid4()}@faults.test")
    ends = {"master_account_id": desk.master.account_id, "follower_account_id": desk.follower.account_id}
    account = {"account_id": desk.follower.account_id}
    calls: list[tuple[str, str, dict[str, object]]] = [
        ("save_copier", "p_copier", {**ends}),
        ("save_copier", "p_copier", {"id": desk.copies[0].copier_id, "mode": "off"}),
        ("set_copier_mode", "p_request", {"copier_id": desk.copies[0].copier_id, "mode": "off"}),
        ("assign_account", "p_request", {**account}),
        ("flatten_account", "p_request", {**account}),
        ("pause_account", "p_request", {**account, "paused": True}),
        ("update_account", "p_request", {**account, "password": "mine now"}),
        ("remove_account", "p_request", {**account}),
    ]
    for function, parameter, argument in calls:
        with pytest.raises(Failure) as refused:
            await ground.farm.backend.rpc(function, parameter, argument, token=stranger.token)
        assert refused.value.code == "TC106", (function, str(refused.value))
    for function, parameter, code in (
        ("vps_heartbeat", "p_heartbeat", "TC101"),
        ("queue_trade_copy", "p_events", "TC101"),
    ):
        with pytest.raises(Failure) as refused:
            await ground.farm.backend.rpc(
                function, parameter, {**account, "epoch": 1, "events": []}, token=stranger.token
            )
        assert refused.value.code == code
    agent = str((await ground.assigned(desk.master))["agent"])
    with pytest.raises(Failure) as refused:
        await ground.testbed.call_as(agent, "save_copier", "p_copier", {**ends})
    assert refused.value.code == "TC105"
    assert await written(ground, desk) == before
