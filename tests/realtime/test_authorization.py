"""Private channels: the policies on realtime.messages decide, at the join for reading and at the first send for
writing."""

import pytest
from realtime_harness import Hall, Opener, mint

from agent.stack.realtime import Limits

ACK = {"ack": True, "self": False}
NO_READ = "Unauthorized: You do not have permissions to read from this Channel topic: "


@pytest.mark.fact("authorize.refused")
async def test_who_may_not_read_is_refused(hall: Hall) -> None:
    member = await (await hall.open()).join("write:1", private=True)
    assert NO_READ + "write:1" in str(await member.status("CHANNEL_ERROR"))


@pytest.mark.fact("authorize.claims")
async def test_policies_see_the_topic_and_the_claims(hall: Hall) -> None:
    peer = await hall.open(token=mint(sub="ann"))
    await peer.joined("user:ann", private=True)
    member = await peer.join("user:bob", private=True)
    assert NO_READ + "user:bob" in str(await member.status("CHANNEL_ERROR"))


@pytest.mark.fact("authorize.headers")
async def test_policies_see_the_headers_of_the_handshake(hall: Hall) -> None:
    await (await hall.open()).joined("agent:1", private=True)


@pytest.mark.fact("authorize.unknown-role")
async def test_a_role_that_does_not_exist_is_refused(hall: Hall, topic: str) -> None:
    member = await (await hall.open(token=mint("agent_x"))).join(topic, private=True)
    assert NO_READ + topic in str(await member.status("CHANNEL_ERROR"))


@pytest.mark.fact("authorize.broken-policy")
async def test_a_policy_that_fails_refuses(hall: Hall) -> None:
    member = await (await hall.open()).join("broken:1", private=True)
    assert NO_READ + "broken:1" in str(await member.status("CHANNEL_ERROR"))


@pytest.mark.fact("authorize.public")
async def test_a_public_channel_asks_no_policy(hall: Hall) -> None:
    await (await hall.open(token=mint("agent_x"))).joined("write:2")


@pytest.mark.fact("authorize.presence-only")
async def test_who_may_read_presence_only_joins_and_hears_no_broadcast(hall: Hall) -> None:
    peer = await hall.open()
    member = await peer.joined("seen:1", private=True, presence={"key": "me", "enabled": True})
    await hall.send("seen:1")
    await (await hall.open()).joined("seen:1", private=True, presence={"key": "you", "enabled": True})
    await hall.send("room:after")
    await peer.frame("presence_state", "seen:1")
    await peer.joined("room:after2", private=True)
    assert member.broadcasts.rest() == []


@pytest.mark.fact("authorize.write-denied")
async def test_a_send_without_a_write_policy_is_silently_withheld(hall: Hall) -> None:
    sender, listener = await hall.open(timeout=0.5), await hall.open()
    member = await sender.joined("read:1", private=True, broadcast=ACK)
    hears = await listener.joined("read:1", private=True)
    assert await member.send("e", {}) == "timed out"
    await hall.send("read:1", "allowed")
    assert (await hears.broadcasts.next())["event"] == "allowed"


@pytest.mark.fact("authorize.write-lazy")
async def test_writing_is_judged_at_the_first_send_and_then_remembered(hall: Hall) -> None:
    club = f"club:{hall.client}-write"
    await hall.db.execute("insert into public.members values (%s)", (club,))
    sender = await hall.open(token=mint(sub=club))
    member = await sender.joined(club, private=True, broadcast=ACK)
    assert await member.send("e", {}) == "ok"
    await hall.db.execute("delete from public.members where sub = %s", (club,))
    assert await member.send("e", {}) == "ok"


@pytest.mark.fact("authorize.once")
async def test_reading_is_judged_at_join_and_again_with_a_new_token(hall: Hall) -> None:
    club = f"club:{hall.client}-read"
    await hall.db.execute("insert into public.members values (%s)", (club,))
    peer = await hall.open(token=mint(sub=club))
    member = await peer.joined(club, private=True)
    await hall.db.execute("delete from public.members where sub = %s", (club,))
    await hall.send(club, "still")
    assert (await member.broadcasts.next())["event"] == "still"
    await peer.set_auth(mint(sub=club, ttl_s=1200))
    system = await peer.frame("system", club)
    assert system.payload["message"] == f"You no longer have permission to read from this Channel topic: {club}"
    await peer.frame("phx_close", club)
    await member.status("CLOSED")


@pytest.mark.fact("authorize.write-again")
async def test_a_new_token_lets_writing_be_judged_again(hall: Hall) -> None:
    rank = f"rank:{hall.client}"
    peer = await hall.open(token=mint(), timeout=0.5)
    member = await peer.joined(rank, private=True, broadcast=ACK)
    assert await member.send("e", {}) == "timed out"
    await peer.set_auth(mint(rank="high"))
    assert await member.send("e", {}) == "ok"


@pytest.mark.fact("authorize.bad-token")
@pytest.mark.parametrize(
    ("token", "text"),
    [("nonsense", "The token provided is not a valid JWT"), (mint(ttl_s=-30), "Token has expired")],
    ids=["malformed", "expired"],
)
async def test_a_bad_new_token_closes_the_channel(hall: Hall, topic: str, token: str, text: str) -> None:
    peer = await hall.open()
    member = await peer.joined(topic)
    await peer.set_auth(token)
    system = (await peer.frame("system", topic)).payload
    assert (system["status"], system["extension"], system["channel"]) == ("error", "system", topic)
    assert system["message"].startswith(text)
    await peer.frame("phx_close", topic)
    await member.status("CLOSED")


@pytest.mark.fact("authorize.expiry")
async def test_an_expiring_token_closes_the_channel_for_good(hall: Hall, topic: str) -> None:
    peer = await hall.open(token=mint(ttl_s=2))
    member = await peer.joined(topic, private=True)
    await peer.frame("phx_reply", topic)
    system = (await peer.frame("system", topic)).payload
    assert system["message"].startswith("Token has expired ")
    assert system["message"].endswith(" seconds ago")
    await peer.frame("phx_close", topic)
    await member.status("CLOSED")
    assert member.statuses.rest() == []


@pytest.mark.fact("authorize.rolled-back")
async def test_asking_the_policies_leaves_no_row_and_reaches_nobody(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(Limits(messages_per_second=1_000))
    member = await (await hall.open()).joined(
        topic, private=True, broadcast=ACK, presence={"key": "me", "enabled": True}
    )
    await member.send("e", {})
    await member.track({})
    rows = await (await hall.db.execute("select count(*) from realtime.messages where topic = %s", (topic,))).fetchone()
    assert rows == (0,)
    assert member.broadcasts.rest() == []
