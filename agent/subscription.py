"""One life of one private Realtime channel on the official Python client: joined at most once, thrown away at the first trouble.

What the client does by itself after a trouble cannot be trusted (realtime-py 2.34: a callback that raises kills its listener, a
closed channel is never rejoined, retries end without a word), so its own reconnecting is off. Callbacks here only put things in
queues and never raise; `ended` tells the owner why this life is over, and the owner makes a new one.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from realtime import AsyncRealtimeChannel, AsyncRealtimeClient, RealtimeSubscribeStates

log = logging.getLogger(__name__)

#: seconds for the handshake, and again for the answer to a join
TIMEOUT: Final = 10
#: seconds between Phoenix heartbeats (the client's floor); they keep the server from dropping a quiet socket, no more
PHOENIX_HEARTBEAT: Final = 15
#: seconds for the other side to close the TCP connection, and to answer a WebSocket ping (one is sent every 20 s)
CLOSE_TIMEOUT: Final = 0.5
PING_TIMEOUT: Final = 5

OnBroadcast = Callable[[str, Mapping[str, object]], None]


class Subscription:
    """`join` once, then wait for `ended`; always `discard`. `on_broadcast(event, payload)` is called in the socket's own task."""

    def __init__(self, url: str, key: str, topic: str, events: Iterable[str], on_broadcast: OnBroadcast) -> None:
        self._client = AsyncRealtimeClient(url, token=key, auto_reconnect=False, hb_interval=PHOENIX_HEARTBEAT, timeout=TIMEOUT)
        self._topic = topic
        self._events = tuple(events)
        self._on_broadcast = on_broadcast
        self._alive = True
        self._channel: AsyncRealtimeChannel | None = None
        #: done when this life is over, with the reason
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._joined = asyncio.Event()

    async def join(self, token: str) -> bool:
        """Connect and join; true when joined. False or an exception: `discard` and begin again."""
        await self._client.set_auth(token)
        await self._client.connect()
        self._notice_death_sooner()
        self._channel = self._client.channel(
            self._topic,
            {"config": {"broadcast": {"ack": False, "self": False}, "presence": {"key": "", "enabled": False}, "private": True}},
        )
        for event in self._events:
            self._channel.on_broadcast(event, self._receiver(event))
        async with asyncio.timeout(TIMEOUT + 5):
            await self._channel.subscribe(self._on_state)
        return self._joined.is_set() and not self.ended.done()

    async def renew(self, token: str) -> None:
        """Hand a new access token to the server (it does not answer) and to later joins."""
        async with asyncio.timeout(TIMEOUT):
            await self._client.set_auth(token)

    def end(self, why: str) -> None:
        """Declare this life over."""
        if not self.ended.done():
            self.ended.set_result(why)

    async def discard(self) -> None:
        """Close the socket and everything that the client would still do. Takes a moment on a dead connection."""
        self._alive = False
        self.end("discarded")
        if self._channel is not None:
            self._channel.rejoin_timer.reset()
            self._channel.join_push.destroy()
        try:
            await self._client.close()
        except Exception as error:
            log.info("socket_close_failed", extra={"error": f"{type(error).__name__}: {error}"})

    def _notice_death_sooner(self) -> None:
        """The client tells nobody that its listener died, and passes no time-outs to its WebSocket (black hole: 50 s).

        Both are private attributes. Should they go away, a dead socket is only noticed later, by the tick that it missed.
        """
        connection = getattr(self._client, "_ws_connection", None)
        if connection is not None:
            connection.close_timeout = CLOSE_TIMEOUT
            connection.ping_timeout = PING_TIMEOUT
        listener = getattr(self._client, "_listen_task", None)
        if isinstance(listener, asyncio.Task):
            listener.add_done_callback(self._listener_ended)

    def _listener_ended(self, listener: "asyncio.Task[None]") -> None:
        error = None if listener.cancelled() else listener.exception()
        self.end(f"the client's listener ended{'' if error is None else f' ({type(error).__name__}: {error})'}")

    def _receiver(self, event: str) -> Callable[[object], None]:
        def receive(message: object) -> None:
            try:
                if self._alive and isinstance(message, dict) and isinstance(message.get("payload"), dict):
                    self._on_broadcast(event, message["payload"])
            except Exception:
                # An exception here would kill the client's listener without a word.
                log.exception("broadcast_lost", extra={"event": event})

        return receive

    def _on_state(self, state: RealtimeSubscribeStates, error: Exception | None) -> None:
        try:
            if state is RealtimeSubscribeStates.SUBSCRIBED:
                self._joined.set()
            else:
                detail = f": {error}" if error is not None else ""
                self.end(f"{state.value}{detail}")
        except Exception:
            log.exception("channel_state_lost")
