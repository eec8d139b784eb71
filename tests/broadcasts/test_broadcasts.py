"""Defects of realtime-py, one test per behaviour: the agent keeps receiving broadcasts nevertheless."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from fake_realtime import TOPIC, Phoenix, Socket, phoenix_server
from realtime import AsyncRealtimeChannel

from agent.broadcasts import channel as subscription_module
from agent.broadcasts.broadcasts import EVENTS, EventSettings, RealTimeTradeEventSystem
from agent.broadcasts.channel import Channel
from agent.broadcasts.handler_queue import Broadcast
from agent.clock import DatabaseClock, boot_time
from agent.control_plane.retry import Unreachable


class Tokens:
    """Numbered tokens in place of the control plane's."""

    def __init__(self) -> None:
        self.number = 1
        self.renewals: list[str | None] = []
        self.fail = False
        self._handlers: list[Callable[[str], None]] = []

    async def access(self) -> str:
        return f"token-{self.number}"

    async def renew(self, rejected: str | None) -> str:
        self.renewals.append(rejected)
        if self.fail:
            raise Unreachable("refresh", "auth is down")
        self.number += 1
        for handler in self._handlers:
            handler(await self.access())
        return await self.access()

    def on_change(self, handler: Callable[[str], None]) -> None:
        self._handlers.append(handler)


class Listener:
    """An agent's event system on a server, its tokens, and everything that it delivered."""

    def __init__(self, server: Phoenix, settings: EventSettings | None = None) -> None:
        self.tokens = Tokens()
        self.clock = DatabaseClock()
        self.received: list[Broadcast] = []
        self.catch_ups = 0
        self.news = asyncio.Event()
        self.waits: list[float] = []
        self.system = RealTimeTradeEventSystem(
            lambda topic, receive: Channel(server.url, "key", topic, EVENTS, receive),
            self.tokens,
            self.clock,
            catch_up=self._catch_up,
            settings=settings or EventSettings(),
            sleep=self._sleep,
        )

    def _catch_up(self) -> None:
        self.catch_ups += 1
        self.news.set()

    async def _sleep(self, seconds: float) -> None:
        """Pauses between sockets take no time but let other tasks run."""
        self.waits.append(seconds)
        self.news.set()
        await asyncio.sleep(0)

    async def take(self, message: Broadcast) -> None:
        self.received.append(message)
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.news.clear()
                await self.news.wait()

    @property
    def ids(self) -> list[object]:
        return [message.payload.get("n") for message in self.received]


@asynccontextmanager
async def listening(
    server: Phoenix, settings: EventSettings | None = None, *, receive: bool = True
) -> AsyncIterator[Listener]:
    listener = Listener(server, settings)
    if receive:
        listener.system.add_handler("listener", listener.take)
    task = asyncio.create_task(listener.system.run(TOPIC))
    try:
        yield listener
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def server() -> AsyncIterator[Phoenix]:
    async with phoenix_server() as running:
        yield running
    # In every test: the agent reaches the database by calls only. A message on the socket could be lost silently.
    assert {said for socket in running.sockets for said in socket.said} <= {
        "phx_join",
        "phx_leave",
        "heartbeat",
        "access_token",
    }


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short timeout of the client for joins."""
    monkeypatch.setattr(subscription_module, "TIMEOUT", 1)


async def test_the_topic_is_joined_privately_with_the_agents_token(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
    assert socket.joins[0]["access_token"] == "token-1"
    config = socket.joins[0]["config"]
    assert isinstance(config, dict)
    assert config["private"] is True


async def test_every_subscription_requests_a_catch_up(server: Phoenix) -> None:
    async with listening(server) as listener:
        (await server.socket(1)).abort()
        await server.socket(2)
        await listener.until(lambda: listener.catch_ups == 2)
        assert listener.system.subscriptions == 2


async def test_a_callback_that_raises_does_not_stop_the_next_broadcast(server: Phoenix) -> None:
    both = Listener(server)

    async def raises(message: Broadcast) -> None:
        raise ValueError("bug of a handler")

    both.system.add_handler("raises", raises)
    both.system.add_handler("listener", both.take)
    task = asyncio.create_task(both.system.run(TOPIC))
    socket = await server.socket(1)
    for n in range(3):
        await socket.broadcast("executions", {"n": n})
    await both.until(lambda: both.ids == [0, 1, 2])
    await both.until(lambda: both.catch_ups >= 4)
    assert both.system.subscriptions == 1
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_receiver_that_raises_inside_the_client_does_not_kill_its_listener(server: Phoenix) -> None:
    got: asyncio.Queue[int] = asyncio.Queue()

    def receive(event: str, payload: object) -> None:
        assert isinstance(payload, dict)
        if payload["n"] == 0:
            raise RuntimeError("a bug in the agent")
        got.put_nowait(payload["n"])

    life = Channel(server.url, "key", TOPIC, EVENTS, receive)
    assert await life.join("token")
    socket = await server.socket(1)
    await socket.broadcast("executions", {"n": 0})
    await socket.broadcast("executions", {"n": 1})
    async with asyncio.timeout(10):
        assert await got.get() == 1
    await life.discard()


async def test_a_listener_that_dies_of_a_bug_of_the_client_is_replaced_at_once(
    server: Phoenix, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")

        def explode(self: object, message: object) -> None:
            monkeypatch.undo()
            raise RuntimeError("a bug in the client")

        monkeypatch.setattr(AsyncRealtimeChannel, "_handle_message", explode)
        await socket.broadcast("executions", {"n": 0})
        await (await server.socket(2)).broadcast("executions", {"n": 1})
        await listener.until(lambda: listener.ids == [1])


async def test_a_handler_that_hangs_delays_no_other(server: Phoenix) -> None:
    listener = Listener(server)
    hanging = asyncio.Event()

    async def hang(message: Broadcast) -> None:
        hanging.set()
        await asyncio.Event().wait()

    listener.system.add_handler("hangs", hang)
    listener.system.add_handler("listener", listener.take)
    task = asyncio.create_task(listener.system.run(TOPIC))
    socket = await server.socket(1)
    for n in range(5):
        await socket.broadcast("executions", {"n": n})
    await listener.until(lambda: listener.ids == [0, 1, 2, 3, 4])
    assert hanging.is_set()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_handler_that_hangs_is_cancelled_and_a_catch_up_is_requested(server: Phoenix) -> None:
    listener = Listener(server, EventSettings(handler_timeout=timedelta(milliseconds=20)))
    seen: list[object] = []

    async def hang_once(message: Broadcast) -> None:
        seen.append(message.payload["n"])
        if len(seen) == 1:
            await asyncio.Event().wait()
        await listener.take(message)

    listener.system.add_handler("hangs once", hang_once)
    task = asyncio.create_task(listener.system.run(TOPIC))
    socket = await server.socket(1)
    await socket.broadcast("executions", {"n": 0})
    await socket.broadcast("executions", {"n": 1})
    await listener.until(lambda: listener.ids == [1])
    assert listener.catch_ups == 2
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_handler_that_is_far_behind_loses_the_oldest_and_catches_up(server: Phoenix) -> None:
    listener = Listener(server, EventSettings(backlog=2))
    release, started = asyncio.Event(), asyncio.Event()

    async def slow(message: Broadcast) -> None:
        started.set()
        await release.wait()
        await listener.take(message)

    arrived: asyncio.Queue[object] = asyncio.Queue()

    async def count(message: Broadcast) -> None:
        arrived.put_nowait(message.payload["n"])

    listener.system.add_handler("slow", slow)
    listener.system.add_handler("count", count)
    task = asyncio.create_task(listener.system.run(TOPIC))
    socket = await server.socket(1)
    for n in range(6):
        await socket.broadcast("executions", {"n": n})
        async with asyncio.timeout(10):
            await started.wait()
            assert await arrived.get() == n
    release.set()
    await listener.until(lambda: listener.ids == [0, 4, 5])
    await listener.until(lambda: listener.catch_ups == 2)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_an_async_handler_is_awaited(server: Phoenix) -> None:
    async with listening(server) as listener:
        await (await server.socket(1)).broadcast("executions", {"n": 7})
        await listener.until(lambda: listener.ids == [7])


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 4000])
async def test_a_socket_closed_by_the_server_is_replaced(server: Phoenix, code: int) -> None:
    async with listening(server) as listener:
        await (await server.socket(1)).ws.close(code=code)
        socket = await server.socket(2)
        await listener.until(lambda: listener.system.subscriptions == 2)
        await socket.broadcast("executions", {"n": 1})
        await listener.until(lambda: listener.ids == [1])


async def test_a_socket_cut_while_a_token_is_sent_is_replaced_and_joined_with_the_new_token(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        socket.abort()
        await listener.tokens.renew("token-1")
        assert (await server.socket(2)).joins[0]["access_token"] == "token-2"


async def test_a_server_unreachable_for_longer_than_the_clients_retries_is_joined_when_it_returns() -> None:
    async with phoenix_server() as server:
        port = int(server.url.split(":")[2].split("/")[0])
        async with listening(server) as listener:
            await server.socket(1)
            await listener.until(lambda: listener.system.state == "joined")
            server.refuse_with = 503
            server.sockets[0].abort()
            await listener.until(lambda: len(listener.waits) > 12)
            assert listener.system.may_miss_broadcasts
            server.refuse_with = None
            await server.socket(2)
            await listener.until(lambda: listener.system.subscriptions == 2)
            assert max(listener.waits) <= EventSettings().longest_wait
    assert port > 0


async def test_a_gateway_killed_and_restarted_on_its_address_is_joined_again() -> None:
    first = Phoenix()
    async with phoenix_server(server=first) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        listener = Listener(server)
        task = asyncio.create_task(listener.system.run(TOPIC))
        await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
    await listener.until(lambda: len(listener.waits) > 3)
    async with phoenix_server(port, first) as server:
        await listener.until(lambda: listener.system.subscriptions == 2)
        assert not listener.system.may_miss_broadcasts
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_handshake_refused_with_401_renews_the_token(server: Phoenix) -> None:
    server.refuse_with = 401
    async with listening(server) as listener:
        await listener.until(lambda: len(listener.tokens.renewals) >= 1)
        server.refuse_with = None
        await listener.until(lambda: listener.system.state == "joined")


async def test_an_expired_token_gets_a_new_token_and_a_new_channel(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        await socket.close_channel("Token has expired 3 seconds ago")
        assert (await server.socket(2)).joins[0]["access_token"] == "token-2"
        await listener.until(lambda: listener.system.subscriptions == 2)


async def test_an_expired_token_that_cannot_be_renewed_now_is_tried_again(server: Phoenix) -> None:
    async with listening(server) as listener:
        listener.tokens.fail = True
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        await socket.close_channel("Token has expired 3 seconds ago")
        await server.socket(2)
        assert listener.tokens.renewals == ["token-1"]


async def test_a_revoked_read_is_retried_and_broadcasts_count_as_missed_meanwhile(server: Phoenix) -> None:
    server.accepts = lambda number: number == 1 or number >= 4
    doubted: list[bool] = []

    def reject(number: int, socket: Socket, ref: object) -> None:
        if 1 < number < 4:
            doubted.append(listener.system.may_miss_broadcasts)
            tasks.append(asyncio.ensure_future(socket.reject(ref, "Unauthorized: You do not have permissions to read")))

    tasks: list[asyncio.Future[None]] = []
    server.on_join = reject
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        await socket.close_channel("You no longer have permission to read from this Channel topic: vps:1")
        await listener.until(lambda: listener.system.subscriptions == 2)
    assert doubted == [True, True]


async def test_a_channel_closed_for_too_many_messages_is_joined_again(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        await socket.close_channel("Too many messages per second")
        await listener.until(lambda: listener.system.subscriptions == 2)


async def test_a_channel_that_closes_silently_is_joined_again(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        await socket.frame("phx_close", {}, "1")
        await listener.until(lambda: listener.system.subscriptions == 2)


async def test_a_channel_that_crashes_is_joined_again(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        await socket.frame("phx_error", {"reason": "channel_crash"}, "1")
        await listener.until(lambda: listener.system.subscriptions == 2)


async def test_a_refused_join_does_not_count_as_a_subscription(server: Phoenix) -> None:
    server.accepts = lambda number: number >= 3
    tasks: list[asyncio.Future[None]] = []

    def reject(number: int, socket: Socket, ref: object) -> None:
        if number < 3:
            tasks.append(asyncio.ensure_future(socket.reject(ref, "ChannelRateLimitReached: Too many channels")))

    server.on_join = reject
    async with listening(server) as listener:
        await listener.until(lambda: listener.system.state == "joined")
        assert listener.catch_ups == 1
        assert len(listener.waits) == 2


@pytest.mark.usefixtures("impatient")
async def test_a_join_answered_late_does_not_leave_a_dead_channel(server: Phoenix) -> None:
    server.accepts = lambda number: number >= 2
    answered: list[asyncio.Future[None]] = []

    def answer_late(number: int, socket: Socket, ref: object) -> None:
        if number == 2:
            answered.append(asyncio.ensure_future(server.sockets[0].accept("1")))

    server.on_join = answer_late
    async with listening(server) as listener:
        socket = await server.socket(2)
        await listener.until(lambda: listener.system.state == "joined")
        await socket.broadcast("executions", {"n": 1})
        await listener.until(lambda: listener.ids == [1])
        assert listener.system.subscriptions == 1


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_answers_no_join_is_tried_again(server: Phoenix) -> None:
    server.silent = True
    async with listening(server) as listener:
        await server.until(lambda: len(server.sockets) == 2)
        assert listener.system.may_miss_broadcasts
        server.silent = False
        await listener.until(lambda: listener.system.state == "joined")


async def test_a_dead_network_is_found_by_missed_ticks(server: Phoenix) -> None:
    async with listening(server) as listener:
        await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        later = datetime.now(UTC) + timedelta(seconds=30)
        doubts = []
        for _ in range(3):
            listener.system.check_ticks(later, later)
            doubts.append(listener.system.may_miss_broadcasts)
        assert doubts[:2] == [False, True]
        await server.socket(2)
        await listener.until(lambda: listener.system.subscriptions == 2)
        assert not listener.system.may_miss_broadcasts


async def test_a_tick_that_arrived_keeps_the_socket(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        later = datetime.now(UTC) + timedelta(seconds=30)
        for _ in range(2):
            listener.system.check_ticks(later, later)
        # the tick of `later` arrives: the agent's clock has reached it
        reached = later + timedelta(seconds=1)
        listener.clock.measure(boot_time(), reached, reached, boot_time())
        await socket.broadcast("tick", {"at": later.isoformat()})
        await socket.broadcast("executions", {"n": 1})
        await listener.until(lambda: listener.ids == [1])
        for _ in range(5):
            listener.system.check_ticks(later, later)
        assert not listener.system.may_miss_broadcasts
        assert listener.system.subscriptions == 1


async def test_a_tick_sent_before_the_join_proves_nothing(server: Phoenix) -> None:
    async with listening(server) as listener:
        await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        now = datetime.now(UTC)
        for _ in range(5):
            listener.system.check_ticks(now - timedelta(seconds=30), now)
        assert not listener.system.may_miss_broadcasts
        assert listener.system.subscriptions == 1


async def test_without_any_ticks_broadcasts_count_as_missed_but_the_socket_stays(server: Phoenix) -> None:
    async with listening(server) as listener:
        await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        now = datetime.now(UTC)
        listener.system.check_ticks(now - timedelta(seconds=30), now + timedelta(seconds=100))
        assert listener.system.may_miss_broadcasts
        assert listener.system.subscriptions == 1


async def test_a_frame_over_one_mebibyte_ends_the_socket_and_a_catch_up_is_requested(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        await socket.broadcast("executions", {"n": "x" * 2**20})
        await listener.until(lambda: listener.catch_ups == 2)
        await (await server.socket(2)).broadcast("executions", {"n": 2})
        await listener.until(lambda: listener.ids == [2])


@pytest.mark.parametrize(
    "frame",
    [
        "not json",
        json.dumps(["v2", None, "realtime:vps:1", "broadcast", {}]),
        json.dumps(
            {
                "topic": "realtime:vps:1",
                "event": "broadcast",
                "ref": None,
                "payload": {"event": "executions", "payload": [1]},
            }
        ),
        json.dumps(
            {"topic": "realtime:vps:1", "event": "broadcast", "payload": {"event": "executions", "payload": {}}}
        ),
        json.dumps({"topic": "realtime:vps:1", "event": "unheard_of", "ref": None, "payload": {}}),
    ],
)
async def test_a_frame_that_the_client_cannot_read_costs_only_itself(server: Phoenix, frame: str) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await socket.ws.send_str(frame)
        await socket.broadcast("executions", {"n": 1})
        await listener.until(lambda: listener.ids == [1])
        assert listener.system.subscriptions == 1


async def test_a_new_token_is_sent_to_the_channel_and_used_by_later_joins(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        await listener.tokens.renew("token-1")
        await server.until(lambda: socket.tokens == ["token-2"])
        socket.abort()
        assert (await server.socket(2)).joins[0]["access_token"] == "token-2"


async def test_a_replaced_socket_is_closed_and_delivers_nothing_more(server: Phoenix) -> None:
    async with listening(server) as listener:
        old = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        await old.frame("phx_close", {}, "1")
        await server.socket(2)
        async with asyncio.timeout(10):
            await old.gone.wait()
        assert listener.received == []


async def test_a_clean_stop_closes_the_socket(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
    async with asyncio.timeout(10):
        await socket.gone.wait()
    assert listener.system.state == "down"


async def test_the_agent_never_sends_a_message_on_the_socket(server: Phoenix) -> None:
    async with listening(server) as listener:
        socket = await server.socket(1)
        await listener.until(lambda: listener.system.state == "joined")
        for number in range(3):
            await socket.broadcast("executions", {"number": number})
        await listener.tokens.renew("token-1")
        await server.until(lambda: "access_token" in socket.said)
    await server.until(socket.gone.is_set)
    assert [said for said in socket.said if said != "heartbeat"] == ["phx_join", "access_token"]
