"""Hosted's message quota, averaged over a window.

Sends and deliveries count; above it receivers close and rows drop.
"""

from dataclasses import dataclass

import pytest
from realtime_harness import Opener, eventually

from agent.stack.realtime import Limits
from agent.stack.realtime.limits import RateMeter

SMALL = Limits(messages_per_second=4, window_s=1, window_buckets=4)


@pytest.mark.fact("quota.receivers")
async def test_over_the_quota_the_receiving_channels_are_closed(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(Limits(messages_per_second=4 / 60))
    first, second = await hall.open(), await hall.open()
    listener, sender = await first.joined(topic), await second.joined(topic)
    for n in range(3):  # send, delivery, send, delivery; the third send is over
        await sender.send("e", {"n": n})
    assert [(await listener.broadcasts.next())["payload"]["n"] for _ in range(2)] == [0, 1]
    system = (await first.frame("system", topic)).payload
    assert (system["message"], system["status"]) == ("Too many messages per second", "error")
    await first.frame("phx_close", topic)
    await listener.status("CLOSED")


@pytest.mark.fact("quota.shared")
async def test_one_noisy_topic_closes_the_listeners_of_another(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(Limits(messages_per_second=4 / 60))
    peer = await hall.open()
    trading = await peer.joined(topic, private=True)
    noisy = await (await hall.open()).joined(topic + "noise")
    for n in range(4):
        await noisy.send("flood", {"n": n})
    await noisy.http_send("flood", {})
    sender = await (await hall.open()).joined(topic, private=True)
    await sender.send("order", {})
    assert (await peer.frame("system", topic)).payload["message"] == "Too many messages per second"
    await trading.status("CLOSED")


@pytest.mark.fact("quota.rows")
async def test_over_the_quota_rows_of_the_database_are_dropped(open_hall: Opener, topic: str) -> None:
    hall = await open_hall(SMALL)
    member = await (await hall.open()).joined(topic, private=True)
    async with hall.db.transaction():
        for n in range(4):
            await hall.send(topic, f"e{n}")
    assert [(await member.broadcasts.next())["event"] for _ in range(2)] == ["e0", "e1"]
    await eventually(lambda: not hall.server.hub.messages.over)
    await hall.send(topic, "later")
    assert (await member.broadcasts.next())["event"] == "later"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_meter_averages_over_its_window() -> None:
    clock = Clock()
    meter = RateMeter(2, window_s=60, buckets=12, clock=clock)
    seen = []
    for passing, things in [(0.0, 119), (0.0, 1), (55.0, 0), (5.0, 0), (0.0, 60), (600.0, 119), (0.0, 1)]:
        clock.now += passing
        meter.count(things)
        seen.append(meter.over)
    assert seen == [False, True, True, False, False, False, True]
