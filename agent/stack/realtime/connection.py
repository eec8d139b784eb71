"""One WebSocket: its serializer, its channels, and the bytes that it sends."""

import asyncio
import logging
import socket as sockets
import time
import zlib
from collections.abc import Iterable, Mapping
from uuid import uuid4

import orjson
from aiohttp import WSMessage, WSMsgType, web

from agent.stack.realtime import frames
from agent.stack.realtime.channel import Channel, JoinConfig, client_broadcast, join_config
from agent.stack.realtime.frames import BadFrame, Broadcast, Incoming, Vsn
from agent.stack.realtime.host import Host
from agent.stack.realtime.join_fields import check_fields, replay_window
from agent.stack.realtime.limits import Limits
from agent.stack.realtime.policies import Extension, PolicyError, Subject, denied
from agent.stack.realtime.tokens import Identity, Refused, identify, is_api_key
from agent.stack.request_guard import readable

log = logging.getLogger(__name__)
_HIDDEN_HEADERS = frozenset({"authorization", "x-api-key", "apikey", "cookie"})


class Connection:
    """Reads one message at a time, in order, as Phoenix does; writes straight to the transport.

    Frames are unmasked and uncompressed, so the bytes of one broadcast serve every subscriber without a task or a copy
    for each. A client that does not read is disconnected when `send_buffer_bytes` are waiting.
    """

    def __init__(
        self,
        server: Host,
        ws: web.WebSocketResponse,
        request: web.Request,
        identity: Identity,
        vsn: Vsn,
        *,
        trusted: bool = True,
    ) -> None:
        self.server = server
        self.client = request.remote or ""
        #: belongs to an agent or to the secret key; known from the handshake or from the first join
        self.trusted = trusted
        #: a signed-in user has joined over this socket
        self.has_user = False
        self.opened_at = time.monotonic()
        self.vsn = vsn
        self.limits: Limits = server.limits
        self.headers: Mapping[str, str] = {
            key.lower(): readable(value) for key, value in request.headers.items() if key.lower() not in _HIDDEN_HEADERS
        }
        self.last_heard = time.monotonic()
        self._identity = identity
        self._ws = ws
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client disconnected during the handshake")
        self._transport = transport
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
        self._channels: dict[str, Channel] = {}
        self._silent = False
        self._done = False
        self._idle_since = time.monotonic()

    # Outgoing frames

    def write(self, frame: bytes) -> None:
        """Write a complete WebSocket frame to the transport."""
        if self._silent or self._done or self._ws.closed or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > self.limits.send_buffer_bytes:
            log.warning("realtime_slow_client_cut", extra={"waiting": self._transport.get_write_buffer_size()})
            self.abort()
            return
        self._transport.write(frame)

    def send(self, name: str, event: str, frame: bytes) -> None:
        """Write a frame; the test hook may delay, drop or repeat it."""
        if self.server.faults.active:
            self.server.faults.route(self, name, event, frame)
        else:
            self.write(frame)

    def push(
        self, topic: str, event: str, payload: object, *, ref: str | None = None, join_ref: str | None = None
    ) -> None:
        frame = frames.message(self.vsn, topic, event, payload, ref=ref, join_ref=join_ref)
        self.send(topic.removeprefix("realtime:"), event, frame)

    def reply(self, incoming: Incoming, status: str, response: object) -> None:
        payload = {"status": status, "response": response}
        self.push(incoming.topic, "phx_reply", payload, ref=incoming.ref, join_ref=incoming.join_ref)

    # State of the socket

    def topics(self) -> Iterable[str]:
        return [channel.name for channel in self._channels.values()]

    def close(self, code: int, reason: str = "") -> None:
        if not self._done:
            self._done = True
            self.server.spawn(self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        await self._ws.close(code=code, message=reason.encode())

    def abort(self) -> None:
        """Reset the TCP connection without a close frame."""
        self._done = True
        self._transport.abort()

    def silence(self) -> None:
        """Simulate a black hole: neither send nor read any bytes, and keep the connection open."""
        self._silent = True
        self._transport.pause_reading()

    def crash(self, topic: str) -> None:
        channel = self._channels.get(f"realtime:{topic}")
        if channel is not None:
            channel.crash()

    def forget(self, channel: Channel) -> None:
        """Remove a channel together with its presence."""
        channel.forgotten()
        if self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]
        self.server.hub.leave(channel)
        if not self._channels:
            self._idle_since = time.monotonic()

    def overdue(self, now: float) -> bool:
        """Whether nothing was received for too long, or no channel was joined for too long."""
        if self._silent:
            return False
        quiet = now - self.last_heard > self.limits.idle_timeout_s
        return quiet or (not self._channels and now - self._idle_since > self.limits.no_channel_timeout_s)

    async def run(self) -> None:
        """Read until the socket ends."""
        try:
            async for message in self._ws:
                self.last_heard = time.monotonic()
                if not self.trusted and self.server.guests is not None:
                    await self.server.guests.slow_down(self.client)
                await self._receive(message)
        finally:
            for channel in list(self._channels.values()):
                self.forget(channel)

    async def _receive(self, message: WSMessage) -> None:
        try:
            if message.type is WSMsgType.TEXT:
                incoming = frames.decode_text(self.vsn, message.data)
            elif message.type is WSMsgType.BINARY:
                incoming = frames.decode_binary(message.data)
            else:
                return
        except BadFrame as error:
            # Phoenix's serializer raises here, which closes the socket.
            log.info("realtime_bad_frame", extra={"reason": str(error)})
            self.close(1011)
            return
        await self.handle(incoming)

    async def handle(self, incoming: Incoming) -> None:
        if incoming.topic == "phoenix":
            if incoming.event == "heartbeat":
                self.reply(incoming, "ok", {})
            return
        if incoming.event == "phx_join":
            await self._join(incoming)
            return
        channel = self._channels.get(incoming.topic)
        if channel is None:
            if incoming.event == "phx_leave":
                self.reply(incoming, "ok", {})
            else:
                self.reply(incoming, "error", {"reason": "unmatched topic"})
            return
        try:
            await channel.receive(incoming)
        except Exception:
            log.exception("realtime_channel_crashed", extra={"topic": channel.name})
            channel.crash()

    def broadcast_of(self, name: str, payload: Mapping[str, object]) -> Broadcast:
        body = payload.get("payload", {})
        if isinstance(body, bytes):
            return client_broadcast(name, payload, body, binary=True)
        return client_broadcast(name, payload, orjson.dumps(body), binary=False)

    # Joins

    async def _join(self, incoming: Incoming) -> None:
        if not incoming.topic.startswith("realtime:"):
            self.reply(incoming, "error", {"reason": "unmatched topic"})
            return
        old = self._channels.get(incoming.topic)
        if old is not None:
            old.end()
        try:
            await self._admit(incoming)
        except Refused as error:
            log.info("realtime_join_refused", extra={"topic": incoming.topic, "reason": error.reason})
            if self.limits.channel_backoff_ms:
                await asyncio.sleep(self.limits.channel_backoff_ms / 1000)
            self.reply(incoming, "error", {"reason": error.reason})
            if error.disconnect:
                self.close(1001)
        except Exception:
            log.exception("realtime_join_failed", extra={"topic": incoming.topic})
            self.reply(incoming, "error", {"reason": "Unknown Error on Channel"})

    async def _admit(self, incoming: Incoming) -> None:
        config = join_config(incoming.payload, str(uuid4()))
        name = incoming.topic.removeprefix("realtime:")
        self._check_limits(name, config)
        check_fields(name, incoming.payload.get("access_token"), config.presence_key, config.postgres_changes)
        identity = self._identify(incoming.payload.get("access_token"))
        await self._admit_guest(identity)
        if not await self.server.streaming():
            raise Refused("UnableToConnectToProject", "Realtime was unable to connect to the project database")
        if self.trusted or self.server.guests is None:
            readable, replayed = await self._ask_database(name, config, identity)
        else:
            async with self.server.guests.questions:
                readable, replayed = await self._ask_database(name, config, identity)
        channel = Channel(
            self, incoming.topic, incoming.join_ref or incoming.ref, config, identity, readable, config.presence_enabled
        )
        self._channels[incoming.topic] = channel
        changes = [{**change, "id": _change_id(change)} for change in config.postgres_changes]
        channel.reply(incoming.ref, "ok", {"postgres_changes": changes})
        self.server.hub.join(channel)
        self._welcome(channel, replayed)

    async def _admit_guest(self, identity: Identity) -> None:
        """Find out who joins; a guest that joins too often is refused and disconnected."""
        guests = self.server.guests
        if guests is None:
            return
        if not self.trusted and await guests.is_trusted(identity.claims):
            self.trusted = True
        self.has_user = self.has_user or identity.claims.get("role") == "authenticated"
        if not self.trusted and not guests.may_join(self.client):
            raise Refused("ClientJoinRateLimitReached", "Too many joins per second", disconnect=True)

    async def _ask_database(
        self, name: str, config: JoinConfig, identity: Identity
    ) -> tuple[frozenset[Extension], list[Broadcast]]:
        return await self._readable(name, config, identity), await self._replay(name, config)

    def _welcome(self, channel: Channel, replayed: list[Broadcast]) -> None:
        for item in replayed:
            frame = frames.broadcast(self.vsn, item)
            if frame is not None:
                channel.deliver(item.event, frame)
        if channel.hears_presence:
            channel.push("presence_state", self.server.hub.state(channel))
        if channel.config.replication_ready:
            channel.system("ok", "Replication connection established")
        if channel.config.postgres_changes:
            text = "postgres_changes is not offered by the embedded server; use broadcasts from the database"
            channel.system("error", text, "postgres_changes")
        channel.watch_token()

    def _check_limits(self, name: str, config: JoinConfig) -> None:
        if not name:
            raise Refused("TopicNameRequired", "You must provide a topic name")
        if self.limits.private_only and not config.private:
            raise Refused("PrivateOnly", "This project only allows private channels")
        if self.server.joins.over:
            raise Refused("ClientJoinRateLimitReached", "Too many joins per second", disconnect=True)
        self.server.joins.count()
        if len(self._channels) >= self.limits.channels_per_connection:
            raise Refused("ChannelRateLimitReached", "Too many channels")

    def _identify(self, token: object) -> Identity:
        if isinstance(token, str) and token and not is_api_key(token):
            return identify(self.server.verify, token)
        return identify(self.server.verify, self._identity.token)

    async def _readable(self, name: str, config: JoinConfig, identity: Identity) -> frozenset[Extension]:
        if not config.private:
            return frozenset()
        wanted: tuple[Extension, ...] = ("broadcast", "presence") if config.presence_enabled else ("broadcast",)
        try:
            readable = await self.server.policies.readable(Subject(identity.claims, self.headers, name), wanted)
            if not readable:
                raise denied(name)
        except PolicyError as error:
            raise Refused(error.code, str(error)) from error
        return readable

    async def _replay(self, name: str, config: JoinConfig) -> list[Broadcast]:
        if config.replay is None:
            return []
        if not config.private:
            raise Refused("UnableToReplayMessages", "Replay is not allowed for public channels")
        since, limit = replay_window(config.replay, self.limits.replay_messages)
        return await self.server.store.replay(name, since, limit)


def _change_id(change: Mapping[str, object]) -> int:
    """A stable number below 2^27 for a change subscription, like hosted's."""
    return zlib.crc32(orjson.dumps(change, option=orjson.OPT_SORT_KEYS)) & 0x7FF_FFFF
