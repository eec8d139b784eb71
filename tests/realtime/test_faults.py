"""The test hook: its effect on frames and sockets, in the same process and over HTTP."""

import aiohttp
import pytest
from realtime_harness import Hall, Opener, eventually, mint, only_python

from agent.stack.realtime import Limits

pytestmark = only_python


async def _numbers(hall: Hall, topic: str, count: int, sent: int) -> list[int]:
    member = await (await hall.open()).joined(topic, private=True)
    async with hall.db.transaction():
        for n in range(sent):
            await hall.send(topic, f"e{n}", f'{{"n": {n}}}')
    return [(await member.broadcasts.next())["payload"]["n"] for _ in range(count)]


async def test_frames_can_be_dropped_by_topic_and_event(hall: Hall, topic: str) -> None:
    rule = hall.server.faults.drop(topic, "e1")
    assert await _numbers(hall, topic, 2, 3) == [0, 2]
    await hall.server.faults.hit(rule)
    assert rule.hits == 1


async def test_frames_can_be_duplicated(hall: Hall, topic: str) -> None:
    hall.server.faults.duplicate(topic, "e*", times=1)
    assert await _numbers(hall, topic, 3, 2) == [0, 0, 1]


async def test_frames_can_be_swapped_with_their_neighbour(hall: Hall, topic: str) -> None:
    hall.server.faults.reorder(topic, "e*", delay_ms=5_000)
    assert await _numbers(hall, topic, 4, 4) == [1, 0, 3, 2]


async def test_a_frame_held_back_for_a_neighbour_that_never_comes_is_sent_late(hall: Hall, topic: str) -> None:
    hall.server.faults.reorder(topic, "e*", delay_ms=20)
    assert await _numbers(hall, topic, 1, 1) == [0]


async def test_frames_can_be_delayed(hall: Hall, topic: str) -> None:
    hall.server.faults.delay(200, topic, "e0")
    assert await _numbers(hall, topic, 3, 3) == [1, 2, 0]


async def test_clearing_the_rules_sends_what_is_held(hall: Hall, topic: str) -> None:
    faults = hall.server.faults
    rule = faults.reorder(topic, "e0", delay_ms=60_000)
    member = await (await hall.open()).joined(topic, private=True)
    await hall.send(topic, "e0")
    await faults.hit(rule)
    faults.clear()
    assert (await member.broadcasts.next())["event"] == "e0"
    assert faults.active is False


async def test_a_black_hole_swallows_without_closing(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True)
    other = await (await hall.open()).joined(topic + "x", private=True)
    assert hall.server.faults.black_hole(topic) == 1
    await hall.send(topic)
    await hall.send(topic + "x")
    await other.broadcasts.next()
    assert member.broadcasts.rest() == []
    assert peer.closed.rest() == []
    # the client would wait ten seconds for the answer to its leave
    assert hall.server.faults.cut(topic) == 1


async def test_handshakes_can_be_refused_for_a_while(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic)
    hall.server.faults.refuse(503)
    hall.server.faults.cut(topic)
    await member.status("CHANNEL_ERROR")
    hall.server.faults.refuse(None)
    await member.status("SUBSCRIBED")


async def test_everything_can_be_done_over_http_by_the_service_role_only(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, private=True)
    root = f"{hall.url}/realtime/v1/test"
    async with aiohttp.ClientSession() as stranger:
        assert (await stranger.get(f"{root}/faults")).status == 401
        user = {"Authorization": f"Bearer {mint()}"}
        assert (await stranger.post(f"{root}/cut", json={}, headers=user)).status == 403
    async with aiohttp.ClientSession(headers={"apikey": "sb_secret_test"}) as http:
        added = await http.post(f"{root}/faults", json={"action": "drop", "topic": topic, "event": "lost", "times": 1})
        assert added.status == 201
        await hall.send(topic, "lost")
        await hall.send(topic, "kept")
        assert (await member.broadcasts.next())["event"] == "kept"
        listing = await (await http.get(f"{root}/faults")).json()
        assert [(rule["hits"], rule["times"]) for rule in listing["rules"]] == [(1, 0)]
        assert listing["sockets"] == [[topic]]
        assert (await http.delete(f"{root}/faults")).status == 204
        assert await (await http.post(f"{root}/crash", json={"topic": topic})).json() == {"channels": 1}
        await member.status("SUBSCRIBED")
        assert await (await http.post(f"{root}/cut", json={"topic": topic, "code": 4000})).json() == {"sockets": 1}
        assert await peer.closed.next() == 4000
        await member.status("SUBSCRIBED")
        assert (await http.post(f"{root}/refuse", json={"status": None})).status == 204
        assert (await http.post(f"{root}/faults", json={"action": "explode"})).status == 422
        assert await (await http.post(f"{root}/black-hole", json={"topic": "nothing"})).json() == {"sockets": 0}


async def test_a_client_that_does_not_read_is_cut_before_it_fills_the_memory(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(Limits(send_buffer_bytes=100_000))
    url = f"{hall.url}/realtime/v1/websocket?apikey=sb_secret_test&vsn=1.0.0"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as deaf:
        join = {"topic": f"realtime:{topic}", "event": "phx_join", "payload": {"config": {"private": True}}, "ref": "1"}
        await deaf.send_json({**join, "join_ref": "1"})
        assert (await deaf.receive_json())["payload"]["status"] == "ok"
        transport = deaf._response.connection.transport  # type: ignore[union-attr]
        transport.pause_reading()  # type: ignore[union-attr]
        for _ in range(40):
            await hall.db.execute(
                "select realtime.send(jsonb_build_object('x', repeat('x', 500000)), 'big', %s, true)", (topic,)
            )
        await eventually(lambda: hall.server.faults.joined() == [])
        transport.abort()  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["[1]", "7", "{", '["1","1",2,"e",{}]'])
@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
async def test_what_is_no_frame_ends_the_socket_only(hall: Hall, vsn: str, text: str, topic: str) -> None:
    member = await (await hall.open()).joined(topic, private=True)
    url = f"{hall.url}/realtime/v1/websocket?apikey=sb_secret_test&vsn={vsn}"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as broken:
        await broken.send_str(text)
        assert (await broken.receive()).data == 1011
    await hall.send(topic)
    await member.broadcasts.next()


async def test_without_a_version_a_socket_speaks_version_1(hall: Hall) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(
            f"{hall.url}/realtime/v1/websocket", headers={"x-api-key": "sb_secret_test"}
        ) as socket:
            await socket.send_json({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "7"})
            assert (await socket.receive_json())["ref"] == "7"
        unknown = await http.get(f"{hall.url}/realtime/v1/websocket?vsn=9&apikey=sb_secret_test")
        assert unknown.status == 403


async def test_a_socket_that_says_nothing_is_closed(open_hall: Opener) -> None:
    hall = await open_hall(Limits(idle_timeout_s=0.2))
    url = f"{hall.url}/realtime/v1/websocket?apikey=sb_secret_test"
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
        assert (await socket.receive()).data == 1000


async def test_two_servers_may_serve_one_database(open_hall: Opener, topic: str) -> None:
    here, there = await open_hall(), await open_hall()
    first = await (await here.open()).joined(topic, private=True)
    second = await (await there.open()).joined(topic, private=True)
    await here.send(topic)
    assert (await first.broadcasts.next())["meta"] == (await second.broadcasts.next())["meta"]


async def test_a_closed_server_leaves_no_slot_behind(open_hall: Opener) -> None:
    hall = await open_hall()
    count = "select count(*) from pg_replication_slots where database = current_database()"
    await hall.server.close()
    assert await (await hall.db.execute(count)).fetchone() == (0,)
    await hall.server.close()
