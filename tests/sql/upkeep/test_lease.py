"""Leases, epochs and failover (law 4.3): who may work an account, and how it moves."""

from datetime import timedelta
from threading import Thread
from uuid import uuid4

import pytest
from api_actors import Farm

pytestmark = pytest.mark.own_database


def test_the_first_heartbeat_makes_a_vps_online_and_gives_it_a_lease(farm: Farm) -> None:
    agent = farm.agent("a", beating=False)
    assert farm.vps(agent)["status"] == "enrolled"
    answer = agent.can("vps_heartbeat", {"agent_version": "1.2", "cpu_percent": 3.5, "offset_ms": "-1.25", "rtt_ms": 2})
    assert (answer["status"], answer["lease_ms"], answer["assignments"], answer["topic"]) == (
        "online",
        15000,
        [],
        f"vps:{agent.vps_id}",
    )
    row = farm.row("select *, lease_expires_at - last_heartbeat_at as lease from public.vps_instances")
    assert timedelta(seconds=15) <= row["lease"] < timedelta(seconds=16)
    assert (row["agent_version"], str(row["clock_offset_ms"])) == ("1.2", "-1.25")


def test_a_heartbeat_lists_the_accounts_with_their_epochs(farm: Farm) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user(), currency="EUR", mode="netting", settings={"book": 7})
    (assignment,) = agent.can("vps_heartbeat", {})["assignments"]
    assert assignment["account_id"] == str(account)
    assert (assignment["epoch"], assignment["currency"], assignment["mode"]) == (1, "EUR", "netting")
    assert (assignment["revision"], assignment["watch_symbols"]) == (1, [])
    assert "settings" not in assignment, "one user's settings must never reach every heartbeat of a VPS"


def test_a_malformed_heartbeat_is_refused_and_changes_nothing(farm: Farm) -> None:
    agent = farm.agent("a", beating=False)
    senseless: list[dict[str, object]] = [
        {"cpu_percent": "NaN"},
        {"rtt_ms": "fast"},
        {"rss_mb": "1e400"},
        {"accounts": {}},
        {"accounts": [{"account_id": "x"}]},
    ]
    for broken in senseless:
        agent.cannot("vps_heartbeat", broken, "TC001")
    assert farm.vps(agent)["status"] == "enrolled"


def test_a_lost_lease_moves_the_accounts_and_the_epoch_grows(farm: Farm) -> None:
    a, b = farm.agent("a"), farm.agent("b", beating=False)
    account = farm.account(farm.user())
    farm.session(a, account)
    b.can("vps_heartbeat", {})
    farm.clear_broadcasts()
    farm.lose_lease(a)
    assert farm.maintain()["moved"] == 1
    assignment = farm.assignment(account)
    assert (assignment["vps_id"], assignment["epoch"]) == (b.vps_id, 2)
    assert farm.vps(a)["status"] == "offline"
    assert len(farm.sent(f"vps:{a.vps_id}", "assignments")) == len(farm.sent(f"vps:{b.vps_id}", "assignments")) == 1


def test_the_old_epoch_is_refused_everywhere(farm: Farm) -> None:
    a, b = farm.agent("a"), farm.agent("b", beating=False)
    account = farm.account(farm.user())
    farm.session(a, account)
    b.can("vps_heartbeat", {})
    farm.lose_lease(a)
    farm.maintain()
    a.can("vps_heartbeat", {})  # it is back, and healthy
    old, new = {"account_id": account, "epoch": 1}, {"account_id": account, "epoch": 2}
    for function in ("open_session", "account_credentials", "report_account_state"):
        a.cannot(function, old, "TC103")
        a.cannot(function, new, "TC103")
        b.cannot(function, old, "TC103")
    b.can("open_session", new)
    assert a.can("vps_heartbeat", {})["assignments"] == []


def test_without_a_lease_nothing_new_is_accepted(farm: Farm) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user())
    farm.lose_lease(agent)
    agent.cannot("open_session", {"account_id": account, "epoch": 1}, "TC104")
    agent.can("vps_heartbeat", {})
    agent.can("open_session", {"account_id": account, "epoch": 1})


def test_the_new_agent_waits_until_the_old_lease_is_over(farm: Farm) -> None:
    a = farm.agent("a")
    account = farm.account(farm.user())
    farm.session(a, account)
    b = farm.agent("b")
    lease = farm.vps(a)["lease_expires_at"]
    farm.service.can("assign_account", {"account_id": account, "vps_id": b.vps_id})
    assert farm.assignment(account)["begins_at"] == lease
    answer = b.can("open_session", {"account_id": account, "epoch": 2})
    assert answer["begins_at"].startswith(lease.strftime("%Y-%m-%dT%H:%M:%S"))


def test_a_second_move_does_not_shorten_the_wait_for_the_first(farm: Farm) -> None:
    a = farm.agent("a")
    account = farm.account(farm.user())
    farm.session(a, account)
    b, c = farm.agent("b"), farm.agent("c")
    lease = farm.vps(a)["lease_expires_at"]
    for agent in (b, c):
        farm.service.can("assign_account", {"account_id": account, "vps_id": agent.vps_id})
    assert farm.assignment(account)["begins_at"] == lease


def test_the_new_agent_waits_until_every_order_in_flight_is_past_its_deadline(farm: Farm) -> None:
    a = farm.agent("a")
    user = farm.user()
    account = farm.account(user)
    farm.session(a, account)
    b = farm.agent("b")
    farm.lose_lease(a, 60)
    farm.rows(
        "insert into public.trade_execution_queue (step_id, lane, user_id, account_id, action, priority, symbol,"
        " side, lots,"
        " send_before, offered_at, queued_at, updated_at)"
        " values (1, '1', %s, %s, 'open', 40, 'EURUSD', 'buy', 1, now() + interval '4 seconds', now(), now(), now())",
        (user.user_id, account),
    )
    farm.maintain()
    moved = farm.row(
        "select s.vps_id, s.begins_at - q.send_before as after"
        " from public.account_vps_assignments s join public.trade_execution_queue q using (account_id)"
    )
    assert moved == {"vps_id": b.vps_id, "after": timedelta(0)}


def test_a_session_cannot_be_opened_while_its_account_moves(farm: Farm) -> None:
    a = farm.agent("a")
    account = farm.account(farm.user())
    b = farm.agent("b")
    racing = farm.elsewhere(a)
    refused: list[str] = []
    late = Thread(
        target=lambda: refused.append(racing.cannot("open_session", {"account_id": account, "epoch": 1}, "TC103"))
    )
    with farm.service.transaction() as move:
        move.execute(
            "select public.assign_account(jsonb_build_object('account_id', %s::text, 'vps_id', %s::text))",
            (account, b.vps_id),
        )
        late.start()
        while not farm.rows("select from pg_locks where not granted"):
            assert late.is_alive()
    late.join(30)
    assert len(refused) == 1, "it waited for the move, then saw it"
    assert farm.row("select session from public.trading_accounts")["session"] == 0


def test_an_account_that_was_never_opened_moves_without_a_wait(farm: Farm) -> None:
    a = farm.agent("a")
    account = farm.account(farm.user())
    b = farm.agent("b")
    farm.service.can("assign_account", {"account_id": account, "vps_id": b.vps_id})
    assert farm.row("select begins_at <= now() as begun from public.account_vps_assignments")["begun"]
    assert farm.assignment(account)["vps_id"] != a.vps_id


def test_an_agent_that_lets_go_ends_the_wait(farm: Farm) -> None:
    a = farm.agent("a")
    account = farm.account(farm.user())
    session = farm.session(a, account)
    b = farm.agent("b")
    farm.service.can("assign_account", {"account_id": account, "vps_id": b.vps_id})
    waiting = "select begins_at > now() as waits from public.account_vps_assignments"
    for said in ([], [{"account_id": account, "session": session - 1, "status": "released"}], [
        {"account_id": account, "session": session, "status": "disconnected"}
    ]):  # fmt: skip
        a.can("vps_heartbeat", {"accounts": said})
        assert farm.row(waiting)["waits"], said
    b.can("vps_heartbeat", {"accounts": [{"account_id": account, "session": session, "status": "released"}]})
    assert farm.row(waiting)["waits"], "nobody else can let go"
    farm.clear_broadcasts()
    a.can("vps_heartbeat", {"accounts": [{"account_id": account, "session": session, "status": "released"}]})
    assert not farm.row(waiting)["waits"]
    assert farm.sent(f"vps:{b.vps_id}", "assignments")


def test_a_database_outage_does_not_move_the_farm(farm: Farm) -> None:
    agents = [farm.agent(name) for name in "abc"]
    accounts = [farm.account(farm.user()) for _ in range(6)]
    before = [farm.assignment(account) for account in accounts]
    for agent in agents:
        farm.lose_lease(agent, 120)
    assert farm.maintain(gap=120)["moved"] == 0
    assert [farm.assignment(account) for account in accounts] == before
    assert {farm.vps(agent)["status"] for agent in agents} == {"online"}
    for agent in agents[1:]:
        agent.can("vps_heartbeat", {})
    farm.lose_lease(agents[0])
    assert farm.maintain()["moved"] == 2, "the one that stays silent is judged in the end"


def test_heartbeats_alone_do_the_work_when_the_scheduler_is_dead(farm: Farm) -> None:
    a, b = farm.agent("a"), farm.agent("b")
    account = farm.account(farm.user())
    first, second = (a, b) if farm.assignment(account)["vps_id"] == a.vps_id else (b, a)
    farm.lose_lease(first)
    farm.rows("update private.clockwork set last_run_at = now() - interval '5 seconds' where true")
    second.can("vps_heartbeat", {})
    assert farm.assignment(account)["vps_id"] == second.vps_id
    assert farm.row(
        "select last_run_at > now() - interval '3 seconds' as ran from private.clockwork where name = 'maintain'"
    )["ran"]


def test_a_heartbeat_leaves_the_work_to_a_scheduler_that_is_alive(farm: Farm) -> None:
    agent = farm.agent("a")
    farm.rows("update private.clockwork set last_run_at = now() - interval '1 second' where true")
    before = farm.rows("select * from private.clockwork order by name")
    agent.can("vps_heartbeat", {})
    assert farm.rows("select * from private.clockwork order by name") == before


def test_a_broken_part_of_maintain_takes_neither_the_others_nor_the_heartbeat_with_it(farm: Farm) -> None:
    a, b = farm.agent("a"), farm.agent("b")
    account = farm.account(farm.user())
    first, second = (a, b) if farm.assignment(account)["vps_id"] == a.vps_id else (b, a)
    farm.rows(
        "create or replace function private.delete_expired() returns void language plpgsql set search_path = ''"
        " as $$ begin raise exception 'broken on purpose'; end $$"
    )
    farm.rows("update private.clockwork set last_run_at = now() - interval '2 minutes' where name = 'retention'")
    farm.lose_lease(first)
    answer = farm.maintain()
    assert answer["moved"] == 1
    assert "broken on purpose" in answer["errors"][0]
    assert (
        "broken on purpose"
        in farm.row("select last_error from private.clockwork where name = 'maintain'")["last_error"]
    )
    second.can("vps_heartbeat", {})


def test_maintain_runs_once_however_many_start_it(farm: Farm) -> None:
    a, b = farm.agent("a"), farm.agent("b")
    accounts = [farm.account(farm.user()) for _ in range(10)]
    farm.lose_lease(a)
    farm.rows("update private.clockwork set last_run_at = now() - interval '3 seconds' where name = 'maintain'")
    schedulers = [farm.elsewhere(farm.service) for _ in range(4)]
    answers: list[dict[str, object]] = []
    threads = [Thread(target=lambda one=one: answers.append(one.can("maintain"))) for one in schedulers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 4
    assert {farm.assignment(account)["vps_id"] for account in accounts} == {b.vps_id}
    assert max(farm.assignment(account)["epoch"] for account in accounts) == 2


def test_maintain_gives_way_to_a_run_in_progress(farm: Farm) -> None:
    other = farm.elsewhere(farm.service)
    with farm.owner.transaction():
        farm.rows("select private.take_turn('maintain')")
        assert other.can("maintain") == {"ran": False}


def test_session_numbers_grow_and_say_what_they_continue(farm: Farm) -> None:
    a = farm.agent("a")
    account = farm.account(farm.user())
    request = {"account_id": account, "epoch": 1}
    first, second = a.can("open_session", request), a.can("open_session", request)
    assert (first["session"], first["continues"], second["session"], second["continues"]) == (1, None, 2, 1)
    b = farm.agent("b")
    farm.service.can("assign_account", {"account_id": account, "vps_id": b.vps_id})
    third = b.can("open_session", {"account_id": account, "epoch": 2})
    assert (third["session"], third["continues"]) == (3, None)


def test_an_older_session_cannot_report_the_state(farm: Farm) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user())
    old, new = farm.session(agent, account), farm.session(agent, account)
    state = {"account_id": account, "epoch": 1, "status": "connected"}
    agent.cannot("report_account_state", state | {"session": old}, "TC208")
    assert agent.can("report_account_state", state | {"session": new})["ok"] is True


def test_unknown_accounts_and_senseless_requests_are_refused_by_name(farm: Farm) -> None:
    agent = farm.agent("a")
    agent.cannot("open_session", {"account_id": uuid4(), "epoch": 1}, "TC103")
    assert "account_id" in agent.cannot("open_session", {"account_id": "x", "epoch": 1}, "TC001")
    assert "epoch" in agent.cannot("open_session", {"account_id": uuid4(), "epoch": -1}, "TC001")
