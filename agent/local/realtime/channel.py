"""One joined topic of one socket: what it may read and write, until its token says no."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.local.realtime.frames import Broadcast, Incoming, Vsn
from agent.local.realtime.policies import Extension, PolicyError, Subject, denied
from agent.local.realtime.tokens import Identity, Refused, expired_text, identify, is_api_key

if TYPE_CHECKING:
    from agent.local.realtime.connection import Connection

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JoinConfig:
    """The `config` of a join, as far as the server acts on it."""

    private: bool
    ack: bool
    self_broadcast: bool
    replication_ready: bool
    replay: Mapping[str, object] | None
    presence_enabled: bool
    presence_key: str
    postgres_changes: tuple[Mapping[str, object], ...]


@dataclass(slots=True, eq=False)
class Channel:
    """A joined channel. Made by the connection after every check of the join has passed."""

    connection: "Connection"
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
        """A message of the server's own making; in 2.0.0 it carries the join_ref for presence state only."""
        join_ref = self.join_ref if event == "presence_state" else None
        self.connection.push(self.topic, event, payload, join_ref=join_ref)

    def reply(self, ref: str | None, status: str, response: object) -> None:
        payload = {"status": status, "response": response}
        self.connection.push(self.topic, "phx_reply", payload, ref=ref, join_ref=self.join_ref)

    def system(self, status: str, text: str, extension: str = "system") -> None:
        self.push("system", {"extension": extension, "status": status, "message": text, "channel": self.name})

    def shut(self, text: str) -> None:
        """End the channel the way hosted does: a `system` error that says why, then `phx_close`."""
        if self.closed:
            return
        log.info("realtime_channel_shut", extra={"topic": self.name, "reason": text})
        self.system("error", text)
        self.end()

    def end(self) -> None:
        """`phx_close` and gone."""
        if self.closed:
            return
        self.connection.push(self.topic, "phx_close", {}, ref=self.join_ref, join_ref=self.join_ref)
        self.connection.forget(self)

    def crash(self) -> None:
        """`phx_error`: the channel's process died; the client is expected to rejoin."""
        payload = {"reason": "channel_crash"}
        self.connection.push(self.topic, "phx_error", payload, ref=self.join_ref, join_ref=self.join_ref)
        self.connection.forget(self)

    # Token

    def watch_token(self) -> None:
        """Look at the token again at min(5 minutes, exp)."""
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
            self.shut(expired_text(-left))
        else:
            self.watch_token()

    def forgotten(self) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()

    async def renew(self, token: object) -> None:
        """`access_token`: read again, write unknown again, out if a read that was granted is lost. No reply."""
        if not isinstance(token, str) or is_api_key(token) or token == self.identity.token:
            return
        try:
            identity = identify(self.connection.server.verify, token)
        except Refused as error:
            self.shut(str(error))
            return
        self.identity = identity
        self.writable.clear()
        if self.private:
            before = self.readable
            try:
                self.readable = await self.connection.server.policies.readable(self.subject, self.extensions)
            except PolicyError as error:
                self.shut(str(error))
                return
            if before - self.readable:
                self.shut(str(denied(self.name)).replace("You do not have permissions", "You no longer have permission"))
                return
        self.watch_token()

    @property
    def extensions(self) -> tuple[Extension, ...]:
        return ("broadcast", "presence") if self.presence_on else ("broadcast",)

    # Messages of the client

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
            return  # hosted is silent here, even when an acknowledgement was asked for
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
            self.shut("Client presence rate limit exceeded")
            return
        if not await self._may_write("presence"):
            return
        hub = self.connection.server.hub
        match incoming.payload.get("event"):
            case "track":
                self.presence_on = True
                payload = incoming.payload.get("payload")
                hub.track(self, self.config.presence_key, payload if isinstance(payload, dict) else {})
            case "untrack":
                hub.untrack(self)
            case other:
                log.info("realtime_presence_ignored", extra={"topic": self.name, "client_event": str(other)})
                return
        self.reply(incoming.ref, "ok", {})


def _flag(value: object, default: bool = False) -> bool:
    """Booleans may also come as the strings "true" and "false"."""
    match value:
        case bool():
            return value
        case str():
            return value.lower() == "true"
        case _:
            return default


def join_config(payload: Mapping[str, object], make_key: str) -> JoinConfig:
    """Read a join's `config`; what is malformed is taken as absent (hosted logs it and goes on)."""
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
