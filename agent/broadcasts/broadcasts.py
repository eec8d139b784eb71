"""`RealTimeTradeEventSystem`: receives the database's broadcasts to this agent and passes them to several handlers.

A broadcast is only a hint and may be lost. Every (re)subscription therefore requests a catch-up (a heartbeat), and
while broadcasts may be missed (`may_miss_broadcasts`) the agent sends a heartbeat every second. The connection is
checked end to end: if the database sent a tick that did not arrive, the socket is replaced, whatever its own state.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, NoReturn, Protocol

from agent import unreachable
from agent.broadcasts.channel import Channel, OnBroadcast
from agent.broadcasts.handler_queue import Broadcast, Handler, HandlerQueue
from agent.clock import DatabaseClock
from agent.control_plane.retry import CallFailed, backoff

log = logging.getLogger(__name__)

EVENTS: Final = ("executions", "cancel", "tick", "assignments")
#: seconds that a clean stop waits for sockets to close
CLOSE_TIMEOUT: Final = 2
State = Literal["joining", "joined", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSettings:
    #: messages queued per handler; beyond that the oldest are dropped and a catch-up is requested
    backlog: int = 1_000
    #: longest time for one message in one handler
    handler_timeout: timedelta = timedelta(seconds=10)
    #: seconds between two sockets: the first pause, and the longest (the server limits joins per second)
    first_wait: float = 0.1
    longest_wait: float = 20
    #: heartbeats in a row that report a missed tick: until broadcasts count as unreliable, and until the socket is
    #: replaced
    suspect_after: int = 2
    replace_after: int = 3
    #: the database sends a tick to a topic that was silent for 30 s; three times that without one means that it sends
    #: no ticks at all
    tick_silence: timedelta = timedelta(seconds=90)
    #: tolerance for clock differences and messages in transit
    slack: timedelta = timedelta(seconds=2)


class TokenSource(Protocol):
    async def access(self) -> str: ...

    async def renew(self, rejected: str | None) -> str: ...

    def on_change(self, handler: Callable[[str], None]) -> None: ...


Connect = Callable[[str, OnBroadcast], Channel]


class RealTimeTradeEventSystem:
    """Register handlers, then `run(topic)` in a task.

    `catch_up` is called at every (re)subscription and after a lost message; it must not block.
    """

    def __init__(
        self,
        connect: Connect,
        tokens: TokenSource,
        clock: DatabaseClock,
        *,
        catch_up: Callable[[], None],
        settings: EventSettings | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._connect = connect
        self._tokens = tokens
        self._clock = clock
        self._catch_up = catch_up
        self._settings = settings or EventSettings()
        self._sleep = sleep
        self._queues: list[HandlerQueue] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._current: Channel | None = None
        self._new_token: asyncio.Event = asyncio.Event()
        self._watchdog = _Watchdog(self._settings)
        self._state: State = "down"
        #: how many sockets were joined so far
        self.subscriptions = 0
        self.joined = asyncio.Event()
        tokens.on_change(lambda _token: self._new_token.set())

    @classmethod
    def to(
        cls, url: str, key: str, tokens: TokenSource, clock: DatabaseClock, *, catch_up: Callable[[], None]
    ) -> "RealTimeTradeEventSystem":
        """For a Supabase project: `url` is `…/realtime/v1`, `key` the publishable key."""
        return cls(lambda topic, receive: Channel(url, key, topic, EVENTS, receive), tokens, clock, catch_up=catch_up)

    def add_handler(self, name: str, handler: Handler) -> None:
        """Every handler gets every message, in order, through its own queue: one that raises or hangs delays no
        other."""
        self._queues.append(
            HandlerQueue(
                name,
                handler,
                backlog=self._settings.backlog,
                timeout=self._settings.handler_timeout,
                catch_up=self._catch_up,
            )
        )

    @property
    def state(self) -> State:
        return self._state

    @property
    def may_miss_broadcasts(self) -> bool:
        """True while a broadcast might not arrive: the agent then sends a heartbeat every second."""
        return self._state != "joined" or self._watchdog.may_miss_broadcasts

    def check_ticks(self, last_tick_at: datetime | None, server_time: datetime) -> None:
        """Replace the socket if it missed ticks. `last_tick_at`: when the database last sent one, on its own clock."""
        if self._state != "joined" or self._current is None:
            return
        verdict = self._watchdog.judge(last_tick_at, server_time)
        if verdict is not None:
            self._current.end(verdict)

    async def run(self, topic: str) -> NoReturn:
        """Keep one live subscription to `topic` until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for queue in self._queues:
                    group.create_task(queue.work(), name=f"handler:{queue.name}")
                await self._keep_subscribed(topic)
        finally:
            await self._close_sockets()
        raise AssertionError("_keep_subscribed never returns")

    async def _close_sockets(self) -> None:
        if self._closing:
            await asyncio.wait(self._closing, timeout=CLOSE_TIMEOUT)
        for task in self._closing:
            task.cancel()

    # -- the socket ------------------------------------------------------------------------------------------

    async def _keep_subscribed(self, topic: str) -> NoReturn:
        waits = self._waits()
        while True:
            before = self.subscriptions
            why = await self._live(topic)
            if self.subscriptions > before:
                waits = self._waits()
            wait = next(waits)
            log.warning(
                "socket_replaced",
                extra={"reason": why, "wait_ms": round(wait * 1000), "subscriptions": self.subscriptions},
            )
            await self._sleep(wait)

    def _waits(self) -> Iterator[float]:
        return backoff(self._settings.first_wait, self._settings.longest_wait)

    async def _live(self, topic: str) -> str:
        """One subscription from join to end; returns why it ended."""
        self._state = "joining"
        token: str | None = None
        subscription = self._connect(topic, self._receive)
        self._current = subscription
        try:
            self._new_token.clear()
            token = await self._tokens.access()
            if await subscription.join(token):
                self._on_joined(topic)
                await self._serve(subscription)
            why = subscription.ended.result() if subscription.ended.done() else "the join was not answered"
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # The client raises what its socket raises (websockets, OSError, TimeoutError …): each means a new socket.
            why = unreachable.reason(error)
        finally:
            self._state = "down"
            self._current = None
            self.joined.clear()
            self._discard(subscription)
        if token is not None and _blames_token(why):
            await self._renew(token)
        return why

    def _on_joined(self, topic: str) -> None:
        self._watchdog.subscribed(self._clock.now())
        self.subscriptions += 1
        self._state = "joined"
        self.joined.set()
        log.info("subscribed", extra={"topic": topic, "subscriptions": self.subscriptions})
        self._catch_up()

    async def _serve(self, subscription: Channel) -> None:
        """Pass every new token to the subscription until it ends."""
        while not subscription.ended.done():
            renewed = asyncio.ensure_future(self._token_renewed())
            try:
                await asyncio.wait({renewed, subscription.ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                renewed.cancel()
            if self._new_token.is_set() and not subscription.ended.done():
                self._new_token.clear()
                await subscription.renew(await self._tokens.access())

    async def _token_renewed(self) -> str:
        await self._new_token.wait()
        return "renewed"

    async def _renew(self, rejected: str) -> None:
        try:
            await self._tokens.renew(rejected=rejected)
        except CallFailed as error:
            log.warning("token_renewal_failed", extra={"error": str(error)})

    def _discard(self, subscription: Channel) -> None:
        """Close the old socket in the background: closing a dead connection takes a while."""
        task = asyncio.get_running_loop().create_task(subscription.discard(), name="discard-socket")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _receive(self, event: str, payload: Mapping[str, object]) -> None:
        now = self._clock.now()
        self._watchdog.received(now)
        if event == "tick":
            return
        message = Broadcast(event, payload, now)
        for queue in self._queues:
            queue.put(message)


def _blames_token(why: str) -> bool:
    return any(sign in why for sign in ("JWT", "Jwt", "Token ", "access_token", "HTTP 401"))


class _Watchdog:
    """Compares the ticks that the database sent with those that arrived."""

    def __init__(self, settings: EventSettings) -> None:
        self._settings = settings
        self._received_at: datetime | None = None
        self._missed = 0
        self._silent = False

    @property
    def may_miss_broadcasts(self) -> bool:
        return self._silent or self._missed >= self._settings.suspect_after

    def subscribed(self, now: datetime) -> None:
        """A join counts as a message: earlier ticks went to the previous socket."""
        self.received(now)

    def received(self, now: datetime) -> None:
        self._received_at = now
        self._missed = 0
        self._silent = False

    def judge(self, last_tick_at: datetime | None, server_time: datetime) -> str | None:
        """Why the socket must be replaced, or None."""
        received_at = self._received_at
        if received_at is None:
            return None
        if last_tick_at is None or last_tick_at <= received_at + self._settings.slack:
            self._missed = 0
            self._silent = server_time - received_at > self._settings.tick_silence
            return None
        self._missed += 1
        if self._missed < self._settings.replace_after:
            return None
        self._missed = 0
        return f"the tick of {last_tick_at.isoformat()} did not arrive"
