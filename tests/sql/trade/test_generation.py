"""A database that went back in time: what agents were told proves it; what follows happens once, before anything is
handed out.

A restore is played by putting the sequence, or the noted marks of the cluster, back to where they were: so does a
backup.
"""

from datetime import datetime
from threading import Barrier, Thread
from typing import Any, Final, LiteralString, cast
from uuid import UUID

import pytest
from api_actors import EURUSD, Actor, Farm, Json
from psycopg import sql

from agent.stack.database import Database

#: sequences are set back, which no rollback undoes; several connections call at once
pytestmark = pytest.mark.own_database

MILLION: Final = 1_000_000


def number(farm: Farm) -> int:
    """The last execution number given out."""
    return int(farm.row("select last_value from public.trade_execution_queue_id_seq")["last_value"])


def put_back(farm: Farm, to: int = 1_000) -> None:
    """The sequence stands where the backup had it."""
    farm.rows("select setval('public.trade_execution_queue_id_seq', %s)", (to,))


def generation(farm: Farm) -> int:
    return int(farm.row("select generation from private.database_generation")["generation"])


def switch(farm: Farm) -> tuple[str, str]:
    row = farm.row("select state, reason from public.trading_switch")
    return row["state"], row["reason"]


def alerts(farm: Farm) -> list[Json]:
    return farm.rows(
        "select user_id, account_id, severity, reason, message, detail, times from public.alerts where kind ="
        " 'database'"
    )


def restarted(farm: Farm, after_s: float = 0) -> None:
    """The server was started since the marks were noted, so many seconds ago."""
    farm.rows(
        "update private.database_generation set postmaster_started_at = postmaster_started_at - interval '1 hour',"
        " noted_at = clock_timestamp() + make_interval(secs => %s) where one",
        (-after_s or 3600,),
    )


def beat(agent: Actor, highest: int | str | None = None, known: int | None = None) -> Json:
    return agent.can(
        "vps_heartbeat", {"highest_execution_id": None if highest is None else str(highest), "generation": known}
    )


def opened(farm: Farm, session: int, seq: int, ticket: str = "5001", **more: Any) -> Json:
    moment = farm.row("select now() as now")["now"].isoformat()
    position = {
        "ticket": ticket,
        "kind": "position",
        "symbol": "EURUSD",
        "side": "buy",
        "lots": "1.00",
        "price": "1.10000",
    }
    return {
        "session": session, "seq": seq, "type": "opened", "position": position, "detected_at": moment,
        "unchanged_at": moment,
    } | more  # fmt: skip


def snapshot(farm: Farm, session: int, seq: int, *positions: Json) -> Json:
    event = opened(farm, session, seq, type="snapshot", positions=list(positions))
    del event["position"]
    return event


def send(farm: Farm, agent: Actor, account: UUID, *events: Json, **more: Any) -> Json:
    epoch = more.pop("epoch", farm.assignment(account)["epoch"])
    return agent.can("queue_trade_copy", {"account_id": account, "epoch": epoch, "events": list(events)} | more)


def filled(farm: Farm, account: UUID, execution_id: str) -> Json:
    """The report of an open that was carried out."""
    held = {"ticket": "77", "kind": "position", "symbol": "EURUSD", "side": "buy", "lots": "1.00", "price": "1.10000"}
    return {
        "account_id": account, "session": session_of(farm, account), "seq": 9, "execution_id": execution_id,
        "attempt": 1,
        "outcome": "completed", "filled_lots": "1.00", "price": "1.10000", "positions": [held | {"tag": execution_id}],
    }  # fmt: skip


def session_of(farm: Farm, account: UUID) -> int:
    return int(farm.row("select session from public.trading_accounts where id = %s", (account,))["session"])


def trading_pair(farm: Farm, agent: Actor) -> tuple[Actor, UUID, UUID]:
    """A user with a master and a follower that are connected, seen and joined by a copier."""
    user = farm.user()
    accounts = [farm.account(user) for _ in range(2)]
    for account in accounts:
        farm.service.can("assign_account", {"account_id": account, "vps_id": agent.vps_id})
        session = farm.session(agent, account)
        agent.can("report_account_state", {
            "account_id": account, "epoch": farm.assignment(account)["epoch"], "session": session,
            "status": "connected",
            "balance": "10000", "equity": "10000", "margin": "0", "free_margin": "10000",
            "symbols": [EURUSD | {"bid": "1.09995", "ask": "1.10000",
                                  "quoted_at": farm.row("select now() as now")["now"]}],
        })  # fmt: skip
        send(farm, agent, account, snapshot(farm, session, 1))
    user.can("save_copier", {"master_account_id": accounts[0], "follower_account_id": accounts[1]})
    return user, accounts[0], accounts[1]


# --- what every answer says -----------------------------------------------------------------------------------


def test_every_answer_names_the_last_number_the_generation_and_its_times(farm: Farm) -> None:
    """By the two times the agent measures its clock: when the database received the call, and when it answered."""
    agent = farm.agent("a")
    _, master, _ = trading_pair(farm, agent)
    epoch = farm.assignment(master)["epoch"]
    session = int(agent.can("open_session", {"account_id": master, "epoch": epoch})["session"])
    answers = [
        beat(agent),
        send(farm, agent, master, snapshot(farm, session, 1)),
        agent.can("report_executions", {"reports": []}),
        agent.can("open_session", {"account_id": master, "epoch": epoch}),
        agent.can("account_credentials", {"account_id": master, "epoch": epoch}),
    ]
    session = session_of(farm, master)
    answers.append(agent.can("report_account_state", {"account_id": master, "epoch": epoch, "session": session}))
    assert [answer["generation"] for answer in answers] == [1] * 6
    times = [datetime.fromisoformat(answer[name]) for answer in answers for name in ("received_at", "sent_at")]
    assert times == sorted(times), "each call was received after the last answer was sent, and before its own was"
    assert len(set(times)) == 12
    told = [int(answer["last_execution_id"]) for answer in answers]
    assert told == sorted(told)
    assert told[-1] == number(farm)


def test_an_answer_names_the_executions_that_it_brings(farm: Farm) -> None:
    agent = farm.agent("a")
    _, master, _ = trading_pair(farm, agent)
    answer = send(farm, agent, master, opened(farm, session_of(farm, master), 2))
    [execution] = answer["executions"]
    assert int(answer["last_execution_id"]) == int(execution["id"]) == number(farm)


def test_what_was_told_is_never_proof_by_itself(farm: Farm) -> None:
    """An agent that repeats what it heard, call after call, is no witness of anything."""
    agent = farm.agent("a")
    _, master, _ = trading_pair(farm, agent)
    answer = beat(agent)
    for seq in range(2, 8):
        heard = {"highest_execution_id": answer["last_execution_id"], "generation": answer["generation"]}
        answer = send(farm, agent, master, opened(farm, session_of(farm, master), seq, str(seq)), **heard)
        answer = beat(agent, answer["last_execution_id"], answer["generation"])
    assert (generation(farm), switch(farm)[0], alerts(farm)) == (1, "on", [])


def test_what_only_changes_the_mirror_or_a_session_counts_as_well(farm: Farm) -> None:
    """Else its loss could not be told: an event that nobody copies, a login."""
    agent = farm.agent("a")
    account = farm.account(farm.user())
    before = number(farm)
    session = farm.session(agent, account)
    after_login = number(farm)
    send(farm, agent, account, snapshot(farm, session, 1))
    assert before < after_login < number(farm)


@pytest.mark.parametrize("claim", ["x", "-1", "1.5", str(2**63), [], True])
def test_a_malformed_claim_is_refused_by_its_name(farm: Farm, claim: object) -> None:
    agent = farm.agent("a")
    assert "highest_execution_id" in agent.cannot("vps_heartbeat", {"highest_execution_id": claim}, "TC001")
    assert "generation" in agent.cannot("vps_heartbeat", {"generation": 0 if claim is True else claim}, "TC001")


# --- it has gone back ------------------------------------------------------------------------------------------


def test_a_higher_number_than_ours_means_that_we_went_back(farm: Farm) -> None:
    agent, other = farm.agent("a"), farm.agent("b")
    _, master, follower = trading_pair(farm, agent)
    before = {account: (session_of(farm, account), farm.assignment(account)["epoch"]) for account in (master, follower)}
    put_back(farm)
    farm.clear_broadcasts()
    answer = beat(agent, 1_001, 1)
    assert (answer["generation"], answer["last_execution_id"]) == (2, str(1_001 + MILLION))
    assert number(farm) == 1_001 + MILLION
    after = {account: (session_of(farm, account), farm.assignment(account)["epoch"]) for account in (master, follower)}
    assert after == {account: (session + MILLION, epoch + MILLION) for account, (session, epoch) in before.items()}
    assert {row["epoch"] for row in answer["assignments"]} == {epoch + MILLION for _, epoch in before.values()}
    assert switch(farm) == ("monitor", "restored")
    [alert] = alerts(farm)
    assert (alert["reason"], alert["severity"], alert["user_id"], alert["account_id"]) == (
        "restored",
        "critical",
        None,
        None,
    )
    assert (alert["detail"]["vps_id"], alert["detail"]["highest_execution_id"]) == (str(agent.vps_id), "1001")
    [entry] = farm.rows("select actor, entity_id, details from public.audit_log where action = 'restored'")
    assert (entry["actor"], entry["entity_id"], entry["details"]["reason"]) == ("agent", "2", "number")
    assert len(farm.sent(f"vps:{other.vps_id}", "assignments")) == 1, "everybody asks for a heartbeat at once"


def test_the_alert_is_for_operators(farm: Farm) -> None:
    agent, user, operator = farm.agent("a"), farm.user(), farm.operator()
    put_back(farm)
    beat(agent, 2_000)
    seen = "select id, reason from public.alerts where kind = 'database'"
    [alert] = operator.sees(seen)
    assert (alert["reason"], user.sees(seen)) == ("restored", [])
    user.cannot("mark_alert_seen", {"alert_id": alert["id"]}, "TC106")
    operator.can("mark_alert_seen", {"alert_id": alert["id"]})


def test_it_happens_once_whoever_tells_it_afterwards(farm: Farm) -> None:
    a, b, fresh = farm.agent("a"), farm.agent("b"), farm.agent("c")
    put_back(farm)
    beat(a, 1_500, 1)
    beat(b, 1_400, 1)
    beat(fresh)
    beat(a, 1_500 + MILLION, 2)
    assert (generation(farm), number(farm), len(alerts(farm))) == (2, 1_500 + MILLION, 1)


def test_a_number_above_the_new_ones_too_is_believed_again(farm: Farm) -> None:
    a, b = farm.agent("a"), farm.agent("b")
    put_back(farm)
    beat(a, 1_500, 1)
    beat(b, 3 * MILLION, 1)
    assert (generation(farm), number(farm)) == (3, 4 * MILLION)


def test_a_generation_that_never_began_here_is_proof_as_well(farm: Farm) -> None:
    agent = farm.agent("a")
    put_back(farm)
    assert beat(agent, 900, 4)["generation"] == 5
    assert number(farm) == 1_000 + MILLION


def test_two_calls_at_once_see_it_once(farm: Farm) -> None:
    agents = [farm.elsewhere(farm.agent(f"vps-{n}")) for n in range(4)]
    put_back(farm)
    together, answers = Barrier(4), cast(dict[int, Json], {})

    def call(n: int) -> None:
        together.wait()
        answers[n] = beat(agents[n], 2_000 + n, 1)

    threads = [Thread(target=call, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [0, 1, 2, 3]
    assert {answer["generation"] for answer in answers.values()} == {2}
    assert 2_000 + MILLION <= number(farm) <= 2_003 + MILLION
    assert (generation(farm), len(alerts(farm)), alerts(farm)[0]["times"]) == (2, 1, 1)


def test_a_stop_of_an_operator_is_not_lifted(farm: Farm) -> None:
    agent, operator = farm.agent("a"), farm.operator()
    operator.can("set_trading", {"state": "off", "reason": "a broker gone mad"})
    put_back(farm)
    beat(agent, 1_001, 1)
    assert (generation(farm), switch(farm)) == (2, ("off", "a broker gone mad"))


@pytest.mark.parametrize("mark", ["system_identifier", "timeline", "dump", "copy"])
def test_another_cluster_or_timeline_means_that_we_went_back(farm: Farm, mark: str) -> None:
    farm.agent("a")
    put_back(farm)
    if mark not in ("dump", "copy"):
        restarted(farm)
    other: dict[str, LiteralString] = {
        "system_identifier": "update private.database_generation set system_identifier = '7' where one",
        "timeline": "update private.database_generation set timeline = timeline + 1 where one",
        "dump": "update private.database_generation set table_oid = 7, noted_at = now() + interval '1 hour' where one",
        "copy": "update private.database_generation set database_oid = 7,"
        " noted_at = now() + interval '1 hour' where one",
    }
    farm.rows(other[mark])
    agent = farm.agent("b", beating=False)
    assert beat(agent)["generation"] == 2
    assert number(farm) == 1_000 + 2 * MILLION
    assert switch(farm) == ("monitor", "restored")
    assert alerts(farm)[0]["detail"]["reason"] == mark.split("_")[0]
    beat(agent)
    assert generation(farm) == 2, "the new marks are noted"


def test_a_copy_that_takes_the_place_of_its_database_means_that_we_went_back(database: Database) -> None:
    """Renamed into its place, without a start of the server: system, timeline and every table are the same."""
    lost = Farm(database)
    vps = lost.agent("a").vps_id
    lost.close()
    with database.server.connect_superuser() as admin:
        for statement in (
            "create database {0}_bk template {0}", "grant create on database {0}_bk to postgres",
            "alter database {0} rename to {0}_lost", "alter database {0}_bk rename to {0}",
        ):  # fmt: skip
            admin.execute(sql.SQL(statement.replace("{0}", database.name)))
    try:
        farm = Farm(database)
        assert (generation(farm), farm.row("select id from public.vps_instances")["id"]) == (1, vps)
        assert beat(farm.agent("b", beating=False))["generation"] == 2
        assert alerts(farm)[0]["detail"]["reason"] == "copy"
        assert switch(farm) == ("monitor", "restored")
        farm.close()
    finally:
        Database(database.server, f"{database.name}_lost").drop()


# --- the server was started --------------------------------------------------------------------------------------


def test_a_started_server_leaves_out_a_million_numbers_and_says_nothing(farm: Farm) -> None:
    agent = farm.agent("a")
    put_back(farm)
    restarted(farm)
    answer = beat(agent, 1_000, 1)
    assert (answer["generation"], answer["last_execution_id"]) == (1, str(1_000 + MILLION))
    beat(agent, 1_000 + MILLION, 1)
    assert (number(farm), switch(farm)[0], alerts(farm)) == (1_000 + MILLION, "on", [])


def test_two_lives_of_one_copy_do_not_jump_to_the_same_numbers(farm: Farm) -> None:
    """The server went on after the copy was made; then the copy was put back. Both begin with the numbers of the
    copy."""
    agent = farm.agent("a")
    starts = []
    for after_s in (100, 160):
        put_back(farm)
        restarted(farm, after_s)
        starts.append(int(beat(agent)["last_execution_id"]))
    assert starts[0] >= 1_000 + MILLION + 100_000
    assert starts[1] - starts[0] > 50_000


def test_the_jump_comes_before_the_first_number_whoever_takes_it(farm: Farm) -> None:
    """Not only agents: what a user or the upkeep plans takes numbers, too."""
    agent = farm.agent("a")
    user, master, follower = trading_pair(farm, agent)
    send(farm, agent, master, opened(farm, session_of(farm, master), 2))
    [execution] = beat(agent)["executions"]
    agent.can("report_executions", {"reports": [filled(farm, follower, execution["id"])]})
    before = number(farm)
    restarted(farm)
    user.can("flatten_account", {"account_id": follower})
    [closing] = farm.rows("select id from public.trade_execution_queue where action = 'close'")
    assert closing["id"] > before + MILLION


def test_a_refused_call_leaves_the_jump_to_the_next_one(farm: Farm) -> None:
    agent = farm.agent("a")
    account = farm.account(farm.user())
    farm.lose_lease(agent)
    put_back(farm)
    restarted(farm)
    agent.cannot("queue_trade_copy", {"account_id": account, "epoch": 1, "events": []}, "TC104")
    assert number(farm) == 1_000
    beat(agent)
    assert number(farm) == 1_000 + MILLION


def test_a_number_that_was_left_out_is_proof_though_it_is_below_ours(farm: Farm) -> None:
    """The copy was put back, and an agent that never saw the number called first: the jump must not hide the
    restore."""
    late, first = farm.agent("late"), farm.agent("first")
    put_back(farm)
    restarted(farm)
    beat(first)
    restarted(farm)
    beat(first)
    assert beat(late, 1_007, 1)["generation"] == 2
    assert (number(farm), switch(farm)) == (1_000 + 3 * MILLION, ("monitor", "restored"))
    beat(late, 1_007, 1)
    assert generation(farm) == 2, "of what has been noticed an older generation is no news"


# --- claims beyond measure -----------------------------------------------------------------------------------------


def test_ten_million_ahead_is_believed_and_one_more_is_refused(farm: Farm) -> None:
    agent = farm.agent("a")
    put_back(farm)
    agent.cannot("vps_heartbeat", {"highest_execution_id": str(10_001_001)}, "TC150")
    assert (number(farm), generation(farm), switch(farm)[0]) == (1_000, 1, "on")
    beat(agent, 10_001_000)
    assert (number(farm), generation(farm)) == (11_001_000, 2)


@pytest.mark.parametrize("claim", [{"highest_execution_id": str(2**63 - 1)}, {"generation": 2**62}])
def test_an_absurd_claim_is_refused_in_every_call_and_operators_are_told(farm: Farm, claim: Json) -> None:
    agent = farm.agent("liar")
    account = farm.account(farm.user())
    calls: list[tuple[str, Json]] = [
        ("vps_heartbeat", {}),
        ("queue_trade_copy", {"account_id": account, "epoch": 1, "events": []}),
        ("report_executions", {"reports": []}),
    ]
    before = number(farm)
    for function, request in calls:
        agent.cannot(function, request | claim, "TC150")
    farm.maintain()
    [alert] = alerts(farm)
    assert (alert["reason"], alert["severity"], alert["detail"]["vps_id"]) == (
        "absurd_claim",
        "critical",
        str(agent.vps_id),
    )
    assert "liar" in alert["message"]
    farm.maintain()
    assert alerts(farm)[0]["times"] == 1
    assert (number(farm), generation(farm), switch(farm)[0]) == (before, 1, "on")


# --- sessions, epochs, events ---------------------------------------------------------------------------------------


def test_an_event_of_an_older_generation_is_history_and_never_a_duplicate(farm: Farm) -> None:
    """The lost database had issued the same session, and an event of the same number was another one."""
    agent, witness = farm.agent("a"), farm.agent("b")
    _, master, _ = trading_pair(farm, agent)
    session = session_of(farm, master)
    send(farm, agent, master, opened(farm, session, 2, "6001"))
    put_back(farm)
    beat(witness, 5_000, 1)
    lost = opened(farm, session, 2, "6002")
    new = farm.session(agent, master)
    assert new == session + MILLION + 1
    answer = send(farm, agent, master, snapshot(farm, new, 1), lost, generation=2)
    assert [result["status"] for result in answer["results"]] == ["accepted", "history"]
    stored = farm.rows("select status from public.trade_events where ticket = '6002'")
    assert [row["status"] for row in stored] == ["history"]


def test_the_call_that_proves_it_is_history_itself(farm: Farm) -> None:
    agent = farm.agent("a")
    _, master, _ = trading_pair(farm, agent)
    session, epoch = session_of(farm, master), farm.assignment(master)["epoch"]
    put_back(farm)
    lost_session = session + 3  # opened in the time that is lost
    claim = {"highest_execution_id": "1234", "generation": 1}
    answer = send(farm, agent, master, opened(farm, lost_session, 4), epoch=epoch + 2, **claim)
    assert (answer["generation"], answer["executions"]) == (2, [])
    assert [result["status"] for result in answer["results"]] == ["history"]
    assert farm.rows("select 1 from public.positions where account_id = %s", (master,)) == []
    again = send(farm, agent, master, opened(farm, lost_session, 5), epoch=epoch + 2, **claim)
    assert (again["generation"], [result["status"] for result in again["results"]]) == (2, ["history"])


def test_a_lost_epoch_does_not_pass_the_fence(farm: Farm) -> None:
    agent, witness = farm.agent("a"), farm.agent("b")
    _, master, _ = trading_pair(farm, agent)
    epoch = farm.assignment(master)["epoch"]
    put_back(farm)
    beat(witness, 5_000, 1)
    for lost in (epoch, epoch + 1, epoch + 2):
        agent.cannot("open_session", {"account_id": master, "epoch": lost}, "TC103")


def test_nobody_trades_until_what_the_lost_database_handed_out_is_past_its_deadline(farm: Farm) -> None:
    agent = farm.agent("a")
    _, master, _ = trading_pair(farm, agent)
    put_back(farm)
    beat(agent, 5_000, 1)
    row = farm.row(
        "select begins_at - now() as wait from public.account_vps_assignments where account_id = %s", (master,)
    )
    assert 3 < row["wait"].total_seconds() <= 5.1


@pytest.mark.parametrize("status", ["queued", "unoffered", "retrying"])
def test_what_was_in_flight_is_looked_for_not_sent(farm: Farm, status: str) -> None:
    agent = farm.agent("a")
    _, master, follower = trading_pair(farm, agent)
    send(farm, agent, master, opened(farm, session_of(farm, master), 2))
    states: dict[str, LiteralString] = {
        "queued": "offered_at = now()",
        "unoffered": "offered_at = null, vps_id = null, epoch = null",
        "retrying": "status = 'retrying', next_attempt_at = now()",
    }
    farm.rows("update public.trade_execution_queue set " + states[status] + " where account_id = %s", (follower,))
    answer = beat(agent, number(farm) + 1, 1)
    [execution] = answer["executions"]
    assert (execution["investigate"], execution["attempt"]) == (True, 1)


def test_reports_of_the_lost_time_are_still_facts(farm: Farm) -> None:
    agent = farm.agent("a")
    _, master, follower = trading_pair(farm, agent)
    [execution] = send(farm, agent, master, opened(farm, session_of(farm, master), 2))["executions"]
    answer = agent.can("report_executions", {
        "highest_execution_id": str(number(farm) + 5), "generation": 1,
        "reports": [filled(farm, follower, execution["id"])],
    })  # fmt: skip
    assert (answer["generation"], answer["results"][0]["status"]) == (2, "accepted")
    assert (
        farm.row("select status from public.trade_execution_queue where id = %s", (execution["id"],))["status"]
        == "completed"
    )


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_an_operator_may_say_it_by_hand(farm: Farm) -> None:
    agent = farm.agent("a")
    trading_pair(farm, agent)
    put_back(farm)
    did = farm.service.can("note_restored", {})
    assert (did["generation"], did["last_execution_id"], did["accounts"]) == (2, str(1_000 + MILLION), 2)
    assert switch(farm) == ("monitor", "restored")
    assert farm.service.can("note_restored", {"highest": "50000000"})["last_execution_id"] == str(51 * MILLION)
    farm.service.cannot("note_restored", {"highest": "x"}, "TC001")
    farm.service.cannot("note_restored", {"highest": str(10**15 + 1)}, "TC001")
    assert [row["actor"] for row in farm.rows("select actor from public.audit_log where action = 'restored'")] == [
        "service"
    ] * 2
