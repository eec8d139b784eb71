"""What goes out on Realtime topics: ticks, doorbells, and who may listen."""

from threading import Event, Thread

import psycopg
import pytest
from api_actors import Actor, Farm

pytestmark = [pytest.mark.own_database, pytest.mark.usefixtures("quiet_server")]


def ring(farm: Farm, *, seconds_since_last: float = 1) -> int:
    farm.rows(
        "update private.clockwork set last_run_at = least(last_run_at, now() - make_interval(secs => %s))"
        " where name = 'doorbells'",
        (seconds_since_last,),
    )
    return int(farm.row("select private.ring_doorbells() as rung")["rung"])


def quiet(farm: Farm) -> None:
    """Everything so far was rung."""
    ring(farm)
    farm.clear_broadcasts()


def test_a_change_rings_its_user_and_the_operators_once(farm: Farm) -> None:
    farm.agent("a")
    user, other = farm.user(), farm.user()
    quiet(farm)
    farm.account(user)
    assert ring(farm) == 2
    (message,) = farm.sent(f"user:{user.user_id}")
    assert (message["event"], set(message["payload"])) == ("changed", {"id"})
    assert len(farm.sent("operators", "changed")) == 1
    assert farm.sent(f"user:{other.user_id}") == []
    assert ring(farm) == 0, "nothing new since"


def test_at_most_one_ring_per_topic_and_second_and_the_last_change_is_not_lost(farm: Farm) -> None:
    user = farm.user()
    quiet(farm)
    farm.account(user)
    assert ring(farm) == 2
    farm.account(user)
    assert farm.row("select private.ring_doorbells() as rung")["rung"] == 0, "within the second"
    assert ring(farm) == 2, "trailing edge"


def test_a_change_that_commits_after_the_ring_it_began_before_is_rung_by_the_next(farm: Farm) -> None:
    user = farm.user()
    farm.account(user)
    quiet(farm)
    slow = farm.elsewhere(user)
    with slow.transaction() as request:
        request.execute(
            "select public.connect_account("
            '\'{"platform": "paper", "server": "Paper", "login": "slow", "password": "p"}\')'
        )
        assert ring(farm) == 0
    assert ring(farm) == 2
    assert ring(farm) == 0


def test_ringing_waits_for_nobody_who_trades(farm: Farm) -> None:
    user = farm.user()
    farm.account(user)
    with farm.elsewhere(farm.service).transaction() as request:
        request.execute("set local role none")
        farm.rows("set lock_timeout = '1s'")
        farm.rows("update public.trading_accounts set name = 'x' where true")
        assert ring(farm) == 2


def test_more_topics_than_the_limit_are_rung_over_several_seconds_and_operators_first(farm: Farm) -> None:
    farm.operator().can("set_setting", {"key": "doorbells_max", "value": 3})
    quiet(farm)
    users = [farm.user() for _ in range(5)]
    for user in users:
        farm.account(user)
    assert [ring(farm), ring(farm), ring(farm)] == [3, 3, 0]
    assert len(farm.sent("operators")) == 1
    assert [len(farm.sent(f"user:{user.user_id}")) for user in users] == [1] * 5


def test_an_idle_farm_rings_nobody(farm: Farm) -> None:
    agent = farm.agent("a")
    quiet(farm)
    for _ in range(3):
        agent.can("vps_heartbeat", {"cpu_percent": 1})
    assert ring(farm) == 0


def test_a_tick_goes_out_every_thirty_seconds_and_the_heartbeat_tells_when(farm: Farm) -> None:
    agent = farm.agent("a")
    topic = f"vps:{agent.vps_id}"
    assert len(farm.sent(topic, "tick")) == 1
    told = agent.can("vps_heartbeat", {})["last_tick_at"]
    (tick,) = farm.sent(topic, "tick")
    assert tick["payload"]["at"] == told
    farm.rows("update public.vps_instances set last_tick_at = now() - interval '31 seconds' where true")
    assert agent.can("vps_heartbeat", {})["last_tick_at"] > told
    assert len(farm.sent(topic, "tick")) == 2
    farm.rows("update public.vps_instances set last_tick_at = now() - interval '31 seconds' where true")
    farm.maintain()
    assert len(farm.sent(topic, "tick")) == 3, "also when the agent is silent"


def test_health_is_written_once_a_minute_per_vps(farm: Farm) -> None:
    farm.agent("a")
    farm.agent("b")
    farm.rows("delete from public.connection_health_logs where true")
    for _ in range(3):
        farm.rows("select private.log_health()")
    counted = farm.row(
        "select count(*), count(distinct vps_id) as vpses, count(distinct at) as minutes from"
        " public.connection_health_logs"
    )
    assert counted["vpses"] == 2
    assert counted["count"] == 2 * counted["minutes"]


def listens(somebody: Actor, topic: str) -> bool:
    """What Realtime does at a join: set the topic, then see whether a message of it is visible."""
    with somebody.transaction() as request:
        request.execute("select set_config('realtime.topic', %s, true)", (topic,))
        return request.execute("select from realtime.messages where topic = %s", (topic,)).fetchone() is not None


def test_everybody_hears_only_his_own_topic(farm: Farm) -> None:
    agent, other_agent, retired = farm.agent("a"), farm.agent("b"), farm.agent("c")
    user, other, operator = farm.user(), farm.user(), farm.operator()
    operator.can("retire_vps", {"vps_id": retired.vps_id})
    topics = {
        f"vps:{agent.vps_id}": [agent],
        f"vps:{other_agent.vps_id}": [other_agent],
        f"vps:{retired.vps_id}": [],
        f"user:{user.user_id}": [user],
        f"user:{other.user_id}": [other],
        "operators": [operator],
        "elsewhere": [],
        "vps:": [],
        "user:": [],
    }
    for topic in topics:
        farm.rows("select private.broadcast(%s, 'changed', '{}')", (topic,))
    everybody = [farm.anonymous, agent, other_agent, retired, user, other, operator]
    for topic, listeners in topics.items():
        assert [somebody for somebody in everybody if listens(somebody, topic)] == listeners, topic


def publish(somebody: Actor, topic: str) -> None:
    with somebody.transaction() as request:
        request.execute("select set_config('realtime.topic', %s, true)", (topic,))
        request.execute(
            "insert into realtime.messages (topic, extension, event, private) values (%s, 'broadcast', 'x', true)",
            (topic,),
        )


def test_nobody_but_the_database_publishes(farm: Farm) -> None:
    agent, user, operator = farm.agent("a"), farm.user(), farm.operator()
    own = {agent: f"vps:{agent.vps_id}", user: f"user:{user.user_id}", operator: "operators", farm.anonymous: "x"}
    for somebody, topic in own.items():
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            publish(somebody, topic)


def test_a_payload_that_realtime_would_lose_is_an_error(farm: Farm) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="expected an object"):
        farm.rows("select private.broadcast('operators', 'x', '[]')")


def test_rings_by_two_schedulers_at_once_are_one_ring(farm: Farm) -> None:
    user = farm.user()
    quiet(farm)
    farm.account(user)
    rung: list[int] = []
    ready = Event()

    def scheduler() -> None:
        ready.wait(10)
        with psycopg.connect(farm.database.dsn_of("postgres"), autocommit=True) as connection:
            row = connection.execute("select private.ring_doorbells()").fetchone()
            rung.append(-1 if row is None else row[0])

    farm.rows("update private.clockwork set last_run_at = now() - interval '1 second' where name = 'doorbells'")
    threads = [Thread(target=scheduler) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.set()
    for thread in threads:
        thread.join(30)
    assert sorted(rung) == [0, 0, 0, 2]
