"""One subscription to a private Realtime channel with the official Python client: joined at most once, discarded at the
first failure.

The client's own recovery is unreliable (realtime-py 2.34: a callback that raises kills its listener, a closed channel
is never rejoined, retries end silently), so its reconnecting is switched off. Callbacks here only put messages in
queues and never raise. `ended` gives the owner the reason for the end, and the owner makes a new `Channel`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from realtime import AsyncRealtimeChannel, AsyncRealtimeClient, RealtimeSubscribeStates

log = logging.getLogger(__name__)

#: seconds for the handshake, and again for the answer to a join
TIMEOUT: Final = 10
#: seconds between Phoenix heartbeats (the client's minimum); they only keep the server from dropping a quiet socket
PHOENIX_HEARTBEAT: Final = 15
#: seconds for the server to close the TCP connection, and to answer a WebSocket ping (one is sent every 20 s)
CLOSE_TIMEOUT: Final = 0.5
PING_TIMEOUT: Final = 5

OnBroadcast = Callable[[str, Mapping[str, object]], None]


class Channel:
    """Call `join` once, then wait for `ended`; always call `discard`. `on_broadcast(event, payload)` is called in the
    socket's own task."""

    def __init__(self, url: str, key: str, topic: str, events: Iterable[str], on_broadcast: OnBroadcast) -> None:
        self._client = AsyncRealtimeClient(
            url, token=key, auto_reconnect=False, hb_interval=PHOENIX_HEARTBEAT, timeout=TIMEOUT
        )
        self._topic = topic
        self._events = tuple(events)
        self._on_broadcast = on_broadcast
        self._alive = True
        self._channel: AsyncRealtimeChannel | None = None
        #: done when the subscription is over, with the reason
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._joined = asyncio.Event()

    async def join(self, token: str) -> bool:
        """Connect and join; true when joined. After False or an exception: `discard` and make a new `Channel`."""
        await self._client.set_auth(token)
        await self._client.connect()
        self._notice_death_sooner()
        self._channel = self._client.channel(
            self._topic,
            {
                "config": {
                    "broadcast": {"ack": False, "self": False},
                    "presence": {"key": "", "enabled": False},
                    "private": True,
                }
            },
        )
        for event in self._events:
            self._channel.on_broadcast(event, self._receiver(event))
        async with asyncio.timeout(TIMEOUT + 5):
            await self._channel.subscribe(self._on_state)
        return self._joined.is_set() and not self.ended.done()

    async def renew(self, token: str) -> None:
        """Send a new access token to the server, which does not answer, and use it for later joins."""
        async with asyncio.timeout(TIMEOUT):
            await self._client.set_auth(token)

    def end(self, why: str) -> None:
        """Declare the subscription over."""
        if not self.ended.done():
            self.ended.set_result(why)

    async def discard(self) -> None:
        """Close the socket and stop the client's timers. Takes a moment on a dead connection."""
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
        """The client does not report that its listener died, and sets no timeouts on its WebSocket, which then takes
        50 s to notice a dead network.

        Both are private attributes. If a later version lacks them, a dead socket is noticed later, by a missed tick.
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
                # An exception here would silently kill the client's listener.
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
