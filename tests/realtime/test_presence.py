"""Presence: state, differences, limits."""

import asyncio
import contextlib
import uuid

import pytest
from realtime_harness import Hall, Opener
from realtime_peers import Member

from agent.stack.realtime import Limits


def on(key: str = "") -> dict[str, object]:
    return {"key": key, "enabled": True}


@pytest.mark.fact("presence.empty")
async def test_the_state_of_an_empty_topic_is_an_empty_object(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    await peer.joined(topic, presence=on())
    state = await peer.frame("presence_state", topic)
    assert (state.ref, state.payload) == (None, {})


@pytest.mark.fact("presence.track")
async def test_who_tracks_is_seen_by_those_who_come_later(hall: Hall, topic: str) -> None:
    first, second = await hall.open(), await hall.open()
    member = await first.joined(topic, presence=on("ann"))
    assert await member.track({"mood": "calm"}) == "ok"
    await second.joined(topic, presence=on("bob"))
    state = (await second.frame("presence_state", topic)).payload
    (meta,) = state["ann"]["metas"]
    assert meta["mood"] == "calm"
    assert meta["phx_ref"]


@pytest.mark.fact("presence.diff")
async def test_arrivals_and_updates_and_departures_are_told(hall: Hall, topic: str) -> None:
    first, second = await hall.open(), await hall.open()
    await first.joined(topic, presence=on("ann"))
    member = await second.joined(topic, presence=on("bob"))
    await member.track({"n": 1})
    arrived = (await first.frame("presence_diff", topic)).payload
    assert arrived["leaves"] == {}
    (meta,) = arrived["joins"]["bob"]["metas"]
    await member.track({"n": 2})
    updated = (await first.frame("presence_diff", topic)).payload
    assert updated["leaves"]["bob"]["metas"] == [meta]
    assert updated["joins"]["bob"]["metas"][0]["phx_ref_prev"] == meta["phx_ref"]
    assert await member.untrack() == "ok"
    gone = (await first.frame("presence_diff", topic)).payload
    assert (gone["joins"], gone["leaves"]["bob"]["metas"][0]["n"]) == ({}, 2)


@pytest.mark.fact("presence.listener")
async def test_a_listener_is_called_with_the_state_of_all(hall: Hall, topic: str) -> None:
    first, second = await hall.open(), await hall.open()
    watching = await first.joined(topic, watch=True)
    member = await second.joined(topic, watch=True)
    await member.track({"n": 1})
    state = await watching.present(bool)
    assert [meta["n"] for metas in state.values() for meta in metas] == [1]
    await member.leave()
    assert await watching.present(lambda s: not s) == {}


@pytest.mark.fact("presence.gone")
async def test_a_lost_socket_takes_its_presence_with_it(hall: Hall, topic: str) -> None:
    first, second = await hall.open(), await hall.open()
    await first.joined(topic, presence=on("ann"))
    member = await second.joined(topic, presence=on("bob"))
    await member.track({})
    await first.frame("presence_diff", topic)
    await second.close()
    assert "bob" in (await first.frame("presence_diff", topic)).payload["leaves"]


@pytest.mark.fact("presence.key")
async def test_without_a_key_the_server_makes_one(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, presence=on())
    await member.track({})
    (key,) = (await peer.frame("presence_diff", topic)).payload["joins"]
    assert str(uuid.UUID(key)) == key


@pytest.mark.fact("presence.rate")
async def test_a_client_that_calls_too_often_is_shut_out(hall: Hall, topic: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic, presence=on("ann"))
    for n in range(5):
        assert await member.track({"n": n}) == "ok"
    with pytest.raises(TimeoutError):
        await _last_track(member)
    assert (await peer.frame("system", topic)).payload["message"] == "Client presence rate limit exceeded"
    await peer.frame("phx_close", topic)


async def _last_track(member: Member) -> str:
    """A track call that may stay unanswered."""
    async with asyncio.timeout(1):
        return await member.track({"n": 9})


@pytest.mark.fact("presence.project-rate")
async def test_too_much_presence_in_the_project_closes_the_receivers(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(Limits(presence_per_second=2 / 60))
    first, second = await hall.open(), await hall.open()
    watching = await first.joined(topic, presence=on("ann"))
    member = await second.joined(topic)
    await member.track({"n": 1})
    # the tracker receives presence too, and its channel is closed as well
    with contextlib.suppress(TimeoutError):
        await _last_track(member)
    system = await first.frame("system", topic)
    assert system.payload["message"] == "Too many presence messages per second"
    await watching.status("CLOSED")


@pytest.mark.fact("presence.denied")
async def test_presence_without_a_write_policy_is_silently_withheld(hall: Hall) -> None:
    first, second = await hall.open(), await hall.open()
    await first.joined("seen:hall", private=True, presence=on("ann"))
    member = await second.joined("seen:hall", private=True, presence=on("bob"))
    with pytest.raises(TimeoutError):
        await _last_track(member)
    await (await hall.open()).joined("seen:hall", private=True, presence=on("eve"))
    assert [frame for frame in first.frames.rest() if frame.event == "presence_diff"] == []
