"""One topic joined by one socket: what it may read and write, until its token expires or is refused."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.stack.realtime.frames import Broadcast, Incoming, Vsn
from agent.stack.realtime.host import Host
from agent.stack.realtime.join_fields import is_writable
from agent.stack.realtime.limits import Limits
from agent.stack.realtime.policies import Extension, PolicyError, Subject, denied
from agent.stack.realtime.tokens import Identity, Refused, expired_text, identify, is_api_key

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JoinConfig:
    """The parts of a join's `config` that the server uses."""

    private: bool
    ack: bool
    self_broadcast: bool
    replication_ready: bool
    replay: Mapping[str, object] | None
    presence_enabled: bool
    presence_key: str
    postgres_changes: tuple[Mapping[str, object], ...]


class Socket(Protocol):
    """What a channel needs from the connection that has joined it."""

    vsn: Vsn
    headers: Mapping[str, str]
    limits: Limits
    server: Host

    def send(self, name: str, event: str, frame: bytes) -> None: ...
    def push(
        self, topic: str, event: str, payload: object, *, ref: str | None = None, join_ref: str | None = None
    ) -> None: ...
    def forget(self, channel: "Channel") -> None: ...
    def broadcast_of(self, name: str, payload: Mapping[str, object]) -> Broadcast: ...


@dataclass(slots=True, eq=False)
class Channel:
    """A joined channel. The connection creates it after every check of the join has passed."""

    connection: Socket
    topic: str
    join_ref: str | None
    config: JoinConfig
    identity: Identity
    readable: frozenset[Extension]
    presence_on: bool
    writable: dict[Extension, bool] = field(default_factory=dict)
    closed: bool = False
    _timer: asyncio.TimerHandle | None = None
    _presence_calls: deque[float] = field(default_factory=deque)

    @property
    def name(self) -> str:
        return self.topic.removeprefix("realtime:")

    @property
    def private(self) -> bool:
        return self.config.private

    @property
    def vsn(self) -> Vsn:
        return self.connection.vsn

    @property
    def hears_broadcasts(self) -> bool:
        return not self.private or "broadcast" in self.readable

    @property
    def hears_presence(self) -> bool:
        return self.presence_on and (not self.private or "presence" in self.readable)

    @property
    def subject(self) -> Subject:
        return Subject(self.identity.claims, self.connection.headers, self.name)

    def deliver(self, event: str, frame: bytes) -> None:
        self.connection.send(self.name, event, frame)

    def push(self, event: str, payload: object) -> None:
        """Send a message that the server originates; in 2.0.0 only presence state carries the join_ref."""
        join_ref = self.join_ref if event == "presence_state" else None
        self.connection.push(self.topic, event, payload, join_ref=join_ref)

    def reply(self, ref: str | None, status: str, response: object) -> None:
        payload = {"status": status, "response": response}
        self.connection.push(self.topic, "phx_reply", payload, ref=ref, join_ref=self.join_ref)

    def system(self, status: str, text: str, extension: str = "system") -> None:
        self.push("system", {"extension": extension, "status": status, "message": text, "channel": self.name})

    def close_with_reason(self, text: str) -> None:
        """End the channel as hosted does: a `system` error with the reason, then `phx_close`."""
        if self.closed:
            return
        log.info("realtime_channel_shut", extra={"topic": self.name, "reason": text})
        self.system("error", text)
        self.end()

    def end(self) -> None:
        """Send `phx_close` and leave."""
        if self.closed:
            return
        self.connection.push(self.topic, "phx_close", {}, ref=self.join_ref, join_ref=self.join_ref)
        self.connection.forget(self)

    def crash(self) -> None:
        """Send `phx_error`, as when the channel's process has died: the client is expected to rejoin."""
        payload = {"reason": "channel_crash"}
        self.connection.push(self.topic, "phx_error", payload, ref=self.join_ref, join_ref=self.join_ref)
        self.connection.forget(self)

    # Token

    def watch_token(self) -> None:
        """Check the token again after min(5 minutes, time to its exp)."""
        if self._timer is not None:
            self._timer.cancel()
        wait = self.connection.limits.token_check_s
        left = self.identity.seconds_left()
        if left is not None:
            wait = min(wait, max(0.0, left))
        self._timer = asyncio.get_running_loop().call_later(wait, self._check_token)

    def _check_token(self) -> None:
        if self.closed:
            return
        left = self.identity.seconds_left()
        if left is not None and left <= 0:
            self.close_with_reason(expired_text(-left))
        else:
            self.watch_token()

    def forgotten(self) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()

    async def renew(self, token: object) -> None:
        """Handle `access_token`: check read again, reset write to unknown, end if read was granted and is lost.

        No reply.
        """
        if not isinstance(token, str) or is_api_key(token) or token == self.identity.token:
            return
        try:
            identity = identify(self.connection.server.verify, token)
        except Refused as error:
            self.close_with_reason(str(error))
            return
        self.identity = identity
        self.writable.clear()
        if self.private:
            before = self.readable
            try:
                self.readable = await self.connection.server.policies.readable(self.subject, self.extensions)
            except PolicyError as error:
                self.close_with_reason(str(error))
                return
            if before - self.readable:
                self.close_with_reason(
                    str(denied(self.name)).replace("You do not have permissions", "You no longer have permission")
                )
                return
        self.watch_token()

    @property
    def extensions(self) -> tuple[Extension, ...]:
        return ("broadcast", "presence") if self.presence_on else ("broadcast",)

    # Messages from the client

    async def receive(self, incoming: Incoming) -> None:
        match incoming.event:
            case "broadcast":
                await self._broadcast(incoming)
            case "presence":
                await self._presence(incoming)
            case "access_token":
                await self.renew(incoming.payload.get("access_token"))
            case "phx_leave":
                self.reply(incoming.ref, "ok", {})
                self.end()
            case _:
                log.info("realtime_event_ignored", extra={"topic": self.name, "client_event": incoming.event})

    async def _may_write(self, extension: Extension) -> bool:
        if not self.private:
            return True
        if extension not in self.writable:
            self.writable[extension] = await self.connection.server.policies.writable(self.subject, extension)
        return self.writable[extension]

    async def _broadcast(self, incoming: Incoming) -> None:
        if not await self._may_write("broadcast"):
            # hosted is silent here, even when an acknowledgement was requested
            return
        item = self.connection.broadcast_of(self.name, incoming.payload)
        if len(item.payload) > self.connection.limits.payload_bytes:
            if self.config.ack:
                self.reply(incoming.ref, "error", {"error": "payload_size_exceeded"})
            return
        hub = self.connection.server.hub
        hub.messages.count()
        hub.broadcast(self.private, item, None if self.config.self_broadcast else self)
        if self.config.ack and not self.closed:
            self.reply(incoming.ref, "ok", {})

    async def _presence(self, incoming: Incoming) -> None:
        limits = self.connection.limits
        now = time.monotonic()
        while self._presence_calls and self._presence_calls[0] < now - limits.presence_calls_window_s:
            self._presence_calls.popleft()
        self._presence_calls.append(now)
        if len(self._presence_calls) > limits.presence_calls:
            self.close_with_reason("Client presence rate limit exceeded")
            return
        if not await self._may_write("presence"):
            return
        hub = self.connection.server.hub
        match incoming.payload.get("event"):
            case "track":
                self.presence_on = True
                payload = incoming.payload.get("payload")
                # it would otherwise be sent to every later member of the topic
                if not is_writable(payload, limits.payload_bytes):
                    self.reply(incoming.ref, "error", {"error": "payload_size_exceeded"})
                    return
                hub.track(self, self.config.presence_key, payload if isinstance(payload, dict) else {})
            case "untrack":
                hub.untrack(self)
            case other:
                log.info("realtime_presence_ignored", extra={"topic": self.name, "client_event": str(other)})
                return
        self.reply(incoming.ref, "ok", {})


def _flag(value: object, default: bool = False) -> bool:
    """Read a Boolean, which may also be the string "true" or "false"."""
    match value:
        case bool():
            return value
        case str():
            return value.lower() == "true"
        case _:
            return default


def join_config(payload: Mapping[str, object], make_key: str) -> JoinConfig:
    """Parse a join's `config`. Malformed fields are treated as absent (hosted logs them and goes on)."""
    config = _mapping(payload.get("config"))
    cast, presence = _mapping(config.get("broadcast")), _mapping(config.get("presence"))
    changes = config.get("postgres_changes")
    replay = cast.get("replay")
    key = presence.get("key")
    return JoinConfig(
        private=_flag(config.get("private")),
        ack=_flag(cast.get("ack")),
        self_broadcast=_flag(cast.get("self")),
        replication_ready=_flag(cast.get("replication_ready")),
        replay=replay if isinstance(replay, dict) else None,
        presence_enabled=_flag(presence.get("enabled")),
        presence_key=key if isinstance(key, str) and key else make_key,
        postgres_changes=tuple(c for c in changes if isinstance(c, dict)) if isinstance(changes, list) else (),
    )


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def client_broadcast(name: str, payload: Mapping[str, object], encoded: bytes, binary: bool) -> Broadcast:
    event = payload.get("event")
    return Broadcast(name, event if isinstance(event, str) else "", encoded, binary=binary)
