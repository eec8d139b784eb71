"""Broadcasts from the database: receivers, order, and behaviour after failures."""

import time

import psycopg
import pytest
from realtime_harness import Hall, Opener, only_js

from agent.stack.database import Database
from agent.stack.postgres import PostgresServer
from agent.stack.realtime import Limits
from agent.stack.schema import apply_platform


@pytest.mark.fact("database.private")
async def test_a_private_row_reaches_private_listeners_only(hall: Hall, topic: str) -> None:
    inside, outside = await hall.open(), await hall.open()
    private = await inside.joined(topic, private=True)
    public = await outside.joined(topic)
    await hall.send(topic, "secret", private=True)
    await hall.send(topic, "open", private=False)
    assert (await private.broadcasts.next())["event"] == "secret"
    assert (await public.broadcasts.next())["event"] == "open"
    assert private.broadcasts.rest() == []


@pytest.mark.fact("database.id")
async def test_a_broadcast_carries_the_id_of_its_row(hall: Hall, topic: str) -> None:
    member = await (await hall.open()).joined(topic, private=True)
    await hall.send(topic, "e", '{"n": 1}')
    heard = await member.broadcasts.next()
    row = await (await hall.db.execute("select id::text from realtime.messages where topic = %s", (topic,))).fetchone()
    assert row == (heard["meta"]["id"],) == (heard["payload"]["id"],)
    await hall.send(topic, "e", '{"id": "mine"}')
    assert (await member.broadcasts.next())["payload"] == {"id": "mine"}


@pytest.mark.fact("database.order")
async def test_messages_arrive_in_commit_order_and_rolled_back_ones_never(hall: Hall, topic: str) -> None:
    member = await (await hall.open()).joined(topic, private=True)
    async with await psycopg.AsyncConnection.connect(hall.dsn) as slow:
        await slow.execute("select realtime.send('{}', 'slow', %s, true)", (topic,))
        await hall.send(topic, "fast")
        async with hall.db.transaction(force_rollback=True):
            await hall.send(topic, "never")
        await slow.commit()
    assert [(await member.broadcasts.next())["event"] for _ in range(2)] == ["fast", "slow"]


@pytest.mark.fact("database.large-transaction")
async def test_a_thousand_messages_of_one_transaction_arrive_in_order(hall: Hall, topic: str) -> None:
    member = await (await hall.open()).joined(topic, private=True)
    statement = "select realtime.send(jsonb_build_object('n', n), 'e', %s, true) from generate_series(1, 1000) n"
    await hall.db.execute(statement, (topic,))
    assert [(await member.broadcasts.next())["payload"]["n"] for _ in range(1000)] == list(range(1, 1001))


@pytest.mark.fact("database.changes")
async def test_broadcast_changes_tells_what_happened_to_a_row(hall: Hall, topic: str) -> None:
    member = await (await hall.open()).joined(topic, private=True)
    await hall.db.execute(
        "select realtime.broadcast_changes(%s, 'moved', 'UPDATE', 'm', 'public', row('new')::public.members,"
        " row('old')::public.members)",
        (topic,),
    )
    heard = await member.broadcasts.next()
    assert heard["event"] == "moved"
    assert {key: heard["payload"][key] for key in ("operation", "table", "schema", "record", "old_record")} == {
        "operation": "UPDATE", "table": "m", "schema": "public", "record": {"sub": "new"}, "old_record": {"sub": "old"},
    }  # fmt: skip


@pytest.mark.fact("database.binary", client="js")
@pytest.mark.fact("database.binary", client="python")
@only_js
async def test_send_binary_reaches_javascript_and_never_python(hall: Hall, topic: str) -> None:
    js = await (await hall.open()).joined(topic, private=True)
    python = await (await hall.open(client="python")).joined(topic, private=True)
    await hall.db.execute("select realtime.send_binary('\\x00ff'::bytea, 'raw', %s, true)", (topic,))
    await hall.send(topic, "json")
    assert (await js.broadcasts.next())["payload"] == {"hex": "00ff"}
    assert (await python.broadcasts.next())["event"] == "json"


@pytest.mark.fact("database.lost-in-sql")
async def test_what_sql_may_not_or_cannot_send_reaches_nobody_and_fails_nobody(hall: Hall, topic: str) -> None:
    member = await (await hall.open()).joined(topic, private=True)
    async with hall.db.transaction():
        await hall.db.execute("set local role anon")
        await hall.send(topic, "not allowed")
    await hall.send(topic, "an array", "[1]")
    await hall.db.execute(
        "insert into realtime.messages (topic, extension, event, private) values (%s, 'broadcast', 'no payload', true)",
        (topic,),
    )
    await hall.send(topic, "good")
    assert (await member.broadcasts.next())["event"] == "good"


@pytest.mark.fact("database.oversize")
async def test_an_oversize_row_is_dropped(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(Limits(payload_kb=1))
    member = await (await hall.open()).joined(topic, private=True)
    await hall.db.execute("select realtime.send(jsonb_build_object('x', repeat('x', 2000)), 'big', %s, true)", (topic,))
    await hall.send(topic, "small")
    assert (await member.broadcasts.next())["event"] == "small"


@pytest.mark.fact("database.stream-lost")
async def test_channels_stay_joined_when_the_stream_breaks_and_hear_again_when_it_is_back(
    hall: Hall, topic: str
) -> None:
    member = await (await hall.open()).joined(topic, private=True)
    slots = "select active_pid from pg_replication_slots where database = current_database() and active_pid is not null"
    (before,) = await (await hall.db.execute(slots)).fetchall()
    await hall.db.execute("select pg_terminate_backend(%s)", before)
    deadline = time.monotonic() + 10
    now = [before]
    while now in ([], [before]):
        assert time.monotonic() < deadline, "no new stream"
        now = await (await hall.db.execute(slots)).fetchall()
    await hall.server.streaming()
    await hall.send(topic, "after")
    heard = await member.broadcasts.until(lambda b: b["event"] == "after")
    assert heard["event"] == "after"
    assert member.statuses.rest() == []


@pytest.mark.fact("database.restart")
@pytest.mark.fact("join.no-database")
@pytest.mark.fact("join.no-partition")
async def test_a_database_restart_is_survived_by_those_who_are_joined(
    open_hall: Opener, lone_postgres: PostgresServer, topic: str
) -> None:
    database = Database.create(lone_postgres, f"lone_{time.monotonic_ns()}")
    with database.connect() as connection:
        apply_platform(connection)
        lone_postgres.passwords.give_to(connection)
    hall = await open_hall(Limits(database_wait_s=0.2), database=database)
    peer = await hall.open(key="sb_secret_test", token="sb_secret_test")
    member = await peer.joined(topic, private=True)
    await hall.db.close()
    lone_postgres.stop()
    other = await peer.join(topic + "x", private=True)
    error = await other.status("CHANNEL_ERROR")
    assert "UnableToConnectToProject: Realtime was unable to connect to the project database" in str(error)
    lone_postgres.start()
    await other.status("SUBSCRIBED")
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as db:
        await db.execute("select realtime.send('{}', 'after', %s, true)", (topic,))
        assert (await member.broadcasts.next())["event"] == "after"
        partitions = await db.execute(
            "select inhrelid::regclass::text from pg_inherits where inhparent = 'realtime.messages'::regclass"
        )
        for (name,) in await partitions.fetchall():
            await db.execute(f"drop table {name}".encode())
    third = await peer.join(topic + "y", private=True)
    assert "MissingPartition" in str(await third.status("CHANNEL_ERROR"))
    await hall.server.store.prepare()
    await third.status("SUBSCRIBED")
    assert member.statuses.rest() == []


REPLAY = {"ack": False, "self": False}


@pytest.mark.fact("replay.newest")
async def test_replay_gives_the_newest_25_private_messages_oldest_first(hall: Hall, topic: str) -> None:
    for n in range(30):
        await hall.send(topic, f"e{n}")
    await hall.send(topic, "public", private=False)
    await hall.send(topic + "x", "elsewhere")
    replay = {"since": int(time.time() * 1000) - 60_000, "limit": 100 if hall.client == "python" else 25}
    member = await (await hall.open()).joined(topic, private=True, broadcast={**REPLAY, "replay": replay})
    heard = [await member.broadcasts.next() for _ in range(25)]
    assert [message["event"] for message in heard] == [f"e{n}" for n in range(5, 30)]
    assert {message["meta"]["replayed"] for message in heard} == {True}
    assert all(message["meta"]["id"] == message["payload"]["id"] for message in heard)


@pytest.mark.fact("replay.binary")
async def test_binary_messages_are_replayed_to_those_who_can_read_them(hall: Hall, topic: str) -> None:
    await hall.send(topic, "before")
    await hall.db.execute("select realtime.send_binary('\\x00ff10', 'bytes', %s, true)", (topic,))
    await hall.send(topic, "after")
    replay = {"since": int(time.time() * 1000) - 60_000, "limit": 25}
    member = await (await hall.open()).joined(topic, private=True, broadcast={**REPLAY, "replay": replay})
    heard = [await member.broadcasts.next() for _ in range(3 if hall.client == "js" else 2)]
    assert [one["event"] for one in heard] == (
        ["before", "bytes", "after"] if hall.client == "js" else ["before", "after"]
    )
    if hall.client == "js":
        assert heard[1]["payload"] == {"hex": "00ff10"}
        assert heard[1]["meta"]["replayed"] is True


@pytest.mark.fact("replay.since")
async def test_replay_begins_at_the_wanted_moment(hall: Hall, topic: str) -> None:
    await hall.send(topic, "old")
    row = await (await hall.db.execute("select extract(epoch from now()) * 1000")).fetchone()
    assert row is not None
    await hall.send(topic, "new")
    replay = {"since": int(row[0]) + 1, "limit": 25}
    await hall.db.execute(
        "update realtime.messages set inserted_at = inserted_at + interval '1 second' where topic = %s and event ="
        " 'new'",
        (topic,),
    )
    member = await (await hall.open()).joined(topic, private=True, broadcast={**REPLAY, "replay": replay})
    assert (await member.broadcasts.next())["event"] == "new"


@pytest.mark.fact("replay.public")
async def test_a_public_channel_has_no_replay(hall: Hall, topic: str) -> None:
    replay = {"since": 0, "limit": 1}
    peer = await hall.open()
    if hall.client == "js":  # the client itself says so
        with pytest.raises(RuntimeError, match="must be a private channel"):
            await peer.join(topic, broadcast={**REPLAY, "replay": replay})
        return
    member = await peer.join(topic, broadcast={**REPLAY, "replay": replay})
    error = await member.status("CHANNEL_ERROR")
    assert "UnableToReplayMessages: Replay is not allowed for public channels" in str(error)
