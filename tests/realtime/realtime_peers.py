"""A common interface to both official clients, so that a test is written once and runs with each."""

import ast
import asyncio
import contextlib
import contextvars
import itertools
import json
import logging
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from realtime import AsyncRealtimeChannel, AsyncRealtimeClient
from realtime.types import RealtimeAcknowledgementStatus, RealtimeChannelOptions

ClientName = Literal["python", "js"]
Json = dict[str, Any]
T = TypeVar("T")
WAIT_S = 10.0
_FOLDER = Path(__file__).parent


class Inbox(Generic[T]):
    """Received items that have not been read yet."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._queue: asyncio.Queue[T] = asyncio.Queue()

    def put(self, item: T) -> None:
        self._queue.put_nowait(item)

    async def next(self, timeout_s: float = WAIT_S) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._queue.get()
        except TimeoutError:
            raise AssertionError(f"no {self._what} within {timeout_s:g} s") from None

    async def until(self, wanted: Callable[[T], bool], timeout_s: float = WAIT_S) -> T:
        """Return the next item that matches, and skip others."""
        async with asyncio.timeout(timeout_s):
            while not wanted(item := await self.next(timeout_s)):
                pass
            return item

    def rest(self) -> list[T]:
        """Remove and return all waiting items."""
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as one client saw it; its fields are the same for both serializers, `keys` only for 1.0.0 objects."""

    topic: str
    event: str
    payload: Any
    ref: str | None
    join_ref: str | None
    raw: Any
    binary: bool = False


def read_frame(data: Any) -> Frame:
    if isinstance(data, dict):
        return Frame(data["topic"], data["event"], data["payload"], data["ref"], data.get("join_ref"), data)
    join_ref, ref, topic, event, payload = data
    return Frame(topic, event, payload, ref, join_ref, data)


def read_binary(data: bytes) -> Frame:
    """Server broadcasts (kind 4) and client pushes (kind 3)."""
    count = {3: 5, 4: 3}[data[0]]
    lengths, at, texts = data[1 : 1 + count], 2 + count, []
    encoding = data[1 + count]
    for length in lengths:
        texts.append(data[at : at + length].decode())
        at += length
    join_ref, ref = (texts[0], texts[1]) if count == 5 else (None, None)
    topic, event, meta = texts[-3:]
    body = json.loads(data[at:]) if encoding == 1 else data[at:]
    payload = {"event": event, "payload": body, "meta": json.loads(meta) if meta else None}
    return Frame(topic, "broadcast", payload, ref, join_ref, data, binary=True)


@dataclass(slots=True)
class Member(ABC):
    """A channel of a client."""

    topic: str
    statuses: Inbox[tuple[str, str | None]] = field(default_factory=lambda: Inbox("status"))
    broadcasts: Inbox[Json] = field(default_factory=lambda: Inbox("broadcast"))
    syncs: Inbox[Json] = field(default_factory=lambda: Inbox("presence sync"))

    async def subscribed(self) -> None:
        status, error = await self.statuses.next()
        assert status == "SUBSCRIBED", (status, error)

    async def status(self, wanted: str) -> str | None:
        """Wait for a status; returns its error text."""
        return (await self.statuses.until(lambda s: s[0] == wanted))[1]

    async def present(self, wanted: Callable[[Json], bool]) -> Json:
        return await self.syncs.until(wanted)

    @abstractmethod
    async def send(self, event: str, payload: Any) -> str:
        """ok | error | timed out (always ok without ack)."""

    @abstractmethod
    async def http_send(self, event: str, payload: Any) -> str | None:
        """None, or the client's error."""

    @abstractmethod
    async def track(self, payload: Json) -> str: ...

    @abstractmethod
    async def untrack(self) -> str: ...

    @abstractmethod
    async def leave(self) -> None: ...


@dataclass(slots=True)
class Peer(ABC):
    """A client with its socket."""

    frames: Inbox[Frame] = field(default_factory=lambda: Inbox("frame"))
    sent: Inbox[Frame] = field(default_factory=lambda: Inbox("frame of the client"))
    closed: Inbox[int] = field(default_factory=lambda: Inbox("close code"))
    unreadable: list[str] = field(default_factory=list)

    async def frame(self, event: str, topic: str | None = None) -> Frame:
        """The next frame with that event (and `realtime:` topic)."""
        return await self.frames.until(
            lambda f: f.event == event and topic in (None, f.topic.removeprefix("realtime:"))
        )

    @abstractmethod
    async def connect(self) -> None: ...

    @abstractmethod
    async def join(self, topic: str, *, changes: Json | None = None, watch: bool = False, **config: Any) -> Member: ...

    async def joined(self, topic: str, **options: Any) -> Member:
        member = await self.join(topic, **options)
        await member.subscribed()
        return member

    @abstractmethod
    async def set_auth(self, token: str) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...


class Refused(Exception):
    """The handshake was answered with an HTTP status."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body


# Python --------------------------------------------------------------------------------------------------------------

_here: contextvars.ContextVar["PythonPeer | None"] = contextvars.ContextVar("peer", default=None)


class _Tap(logging.Handler):
    """The client logs every raw frame at DEBUG; the logging context identifies the client."""

    def emit(self, record: logging.LogRecord) -> None:
        peer, text = _here.get(), record.getMessage()
        if peer is None:
            return
        if text.startswith("receive: "):
            peer.frames.put(read_frame(json.loads(ast.literal_eval(text[9:]))))
        elif text.startswith("send: "):
            peer.sent.put(read_frame(json.loads(text[6:])))
        elif "Unrecognized message format" in text:
            peer.unreadable.append(text)


_TAP = _Tap()


@dataclass(slots=True)
class PythonMember(Member):
    channel: AsyncRealtimeChannel = field(kw_only=True)
    peer: "PythonPeer" = field(kw_only=True)

    async def _push(self, event: str, payload: Json, wait: bool) -> str:
        push = await self.peer.run(self.channel.push(event, payload))
        if not wait:
            return "ok"
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def settle(outcome: str) -> Callable[..., None]:
            def receive(*_: object) -> None:
                if not answer.done():
                    answer.set_result(outcome)

            return receive

        push.receive(RealtimeAcknowledgementStatus.Ok, settle("ok"))
        push.receive(RealtimeAcknowledgementStatus.Error, settle("error"))
        push.receive(RealtimeAcknowledgementStatus.Timeout, settle("timed out"))
        async with asyncio.timeout(WAIT_S):
            return await answer

    async def send(self, event: str, payload: Any) -> str:
        ack = bool((self.channel.params["config"].get("broadcast") or {}).get("ack"))
        return await self._push("broadcast", {"type": "broadcast", "event": event, "payload": payload}, ack)

    async def http_send(self, event: str, payload: Any) -> str | None:
        try:
            await self.channel.http_send(event, payload)
        except Exception as error:
            return str(error)
        return None

    async def track(self, payload: Json) -> str:
        return await self._push("presence", {"event": "track", "payload": payload}, True)

    async def untrack(self) -> str:
        return await self._push("presence", {"event": "untrack", "payload": {}}, True)

    async def leave(self) -> None:
        await self.peer.run(self.channel.unsubscribe())


@dataclass(slots=True)
class PythonPeer(Peer):
    client: AsyncRealtimeClient = field(kw_only=True)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    background: set[asyncio.Task[Any]] = field(default_factory=set)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        return await self.start(work)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        self.context.run(_here.set, self)
        task = asyncio.get_running_loop().create_task(work, context=self.context)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task

    async def connect(self) -> None:
        try:
            await self.run(self.client.connect())
        except Exception as error:
            response = getattr(error, "response", None)
            if response is None:
                raise
            raise Refused(response.status_code, json.loads(response.body)) from error
        self.start(self._watch())

    async def _watch(self) -> None:
        socket = self.client._ws_connection
        if socket is not None:
            await socket.wait_closed()
            self.closed.put(socket.close_code or 1006)

    async def join(self, topic: str, *, changes: Json | None = None, watch: bool = False, **config: Any) -> Member:
        config.setdefault("broadcast", {"ack": False, "self": False})
        config.setdefault("presence", {"key": "", "enabled": False})
        config.setdefault("private", False)
        if not self.client.is_connected:
            await self.connect()
        channel = self.client.channel(topic, cast(RealtimeChannelOptions, {"config": config}))
        member = PythonMember(topic, channel=channel, peer=self)
        channel.on_broadcast("*", lambda p: member.broadcasts.put(dict(p)))
        if watch:
            channel.on_presence_sync(lambda: member.syncs.put(_states(dict(channel.presence_state()))))
        if changes:
            channel.on_postgres_changes(callback=lambda _p: None, **changes)
        self.start(channel.subscribe(lambda s, e: member.statuses.put((s.value, str(e) if e else None))))
        return member

    async def set_auth(self, token: str) -> None:
        await self.run(self.client.set_auth(token))

    async def close(self) -> None:
        await self.client.close()
        for task in list(self.background):
            task.cancel()
        if self.background:
            await asyncio.wait(set(self.background), timeout=5)


def _states(state: Json) -> Json:
    return {key: [dict(meta) for meta in metas] for key, metas in state.items()}


# JavaScript ----------------------------------------------------------------------------------------------------------


class Node:
    """One Node process for the whole run; a thread reads its output, because tests with different loops share it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["node", str(_FOLDER / "driver.mjs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_FOLDER, text=True
        )
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Callable[[Json], None]] = {}
        self.listeners: dict[str, Callable[[Json], None]] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._lock:
                if "id" in message:
                    receiver = self._waiting.pop(message["id"], None)
                else:
                    receiver = self.listeners.get(message.get("client") or message.get("channel") or "")
            if receiver is not None:
                with contextlib.suppress(RuntimeError):  # the test's loop is gone
                    receiver(message)

    async def call(self, op: str, **arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Json] = loop.create_future()
        number = next(self._ids)

        def settle(message: Json) -> None:
            loop.call_soon_threadsafe(answer.set_result, message)

        with self._lock:
            self._waiting[number] = settle
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "op": op, **arguments}) + "\n")
        self._process.stdin.flush()
        async with asyncio.timeout(30):
            message = await answer
        if "error" in message:
            raise RuntimeError(message["error"])
        return message["result"]

    def listen(self, name: str, receive: Callable[[Json], None]) -> None:
        loop = asyncio.get_running_loop()

        def forward(message: Json) -> None:
            loop.call_soon_threadsafe(receive, message)

        with self._lock:
            self.listeners[name] = forward

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._thread.join(10)
        self._process.stdout.close()


_names = itertools.count(1)


@dataclass(slots=True)
class JsMember(Member):
    node: Node = field(kw_only=True)
    channel: str = field(kw_only=True)

    def receive(self, message: Json) -> None:
        match message["kind"]:
            case "status":
                self.statuses.put((message["data"]["status"], message["data"]["error"]))
            case "broadcast":
                self.broadcasts.put(message["data"])
            case "sync":
                self.syncs.put(message["data"])
            case _:
                # presence joins and leaves are checked in the frames
                pass

    async def send(self, event: str, payload: Any) -> str:
        if isinstance(payload, bytes):
            return str(await self.node.call("send", channel=self.channel, event=event, hex=payload.hex()))
        return str(await self.node.call("send", channel=self.channel, event=event, payload=payload))

    async def http_send(self, event: str, payload: Any) -> str | None:
        body: Json = {"hex": payload.hex()} if isinstance(payload, bytes) else {"payload": payload}
        try:
            result = await self.node.call("httpSend", channel=self.channel, event=event, **body)
        except RuntimeError as error:
            return str(error)
        return None if result["success"] else f"{result['status']} {result['error']}"

    async def track(self, payload: Json) -> str:
        return str(await self.node.call("track", channel=self.channel, payload=payload))

    async def untrack(self) -> str:
        return str(await self.node.call("untrack", channel=self.channel))

    async def leave(self) -> None:
        await self.node.call("leave", channel=self.channel)


@dataclass(slots=True)
class JsPeer(Peer):
    node: Node = field(kw_only=True)
    name: str = field(kw_only=True)
    answers: Inbox[Json | None] = field(default_factory=lambda: Inbox("answer to the handshake"))

    def receive(self, message: Json) -> None:
        kind, data = message["kind"], message["data"]
        if kind == "closed":
            self.closed.put(data)
        elif kind in ("refused", "opened"):
            self.answers.put(data)
        else:
            frame = read_binary(bytes.fromhex(data["hex"])) if "hex" in data else read_frame(json.loads(data["text"]))
            (self.frames if kind == "in" else self.sent).put(frame)

    async def connect(self) -> None:
        """Connect; raises Refused if the first answer is a refusal."""
        await self.node.call("connect", client=self.name)
        refusal = await self.answers.next()
        if refusal is not None:
            raise Refused(refusal["status"], json.loads(refusal["body"]))

    async def join(self, topic: str, *, changes: Json | None = None, watch: bool = False, **config: Any) -> Member:
        member = JsMember(topic, node=self.node, channel=f"{self.name}/{next(_names)}")
        self.node.listen(member.channel, member.receive)
        await self.node.call(
            "join",
            client=self.name,
            channel=member.channel,
            topic=topic,
            config=config,
            presence=watch,
            changes=changes,
        )
        return member

    async def set_auth(self, token: str) -> None:
        await self.node.call("setAuth", client=self.name, token=token)

    async def close(self) -> None:
        await self.node.call("close", client=self.name)


def python_peer(url: str, key: str, token: str | None, **options: Any) -> PythonPeer:
    """A Python client; with a token it connects as an agent does (key for the gateway, JWT for the channels)."""
    logger = logging.getLogger("realtime")
    logger.setLevel(logging.DEBUG)
    if _TAP not in logger.handlers:
        logger.addHandler(_TAP)
    options.setdefault("max_retries", 50)
    options.setdefault("initial_backoff", 0.05)
    client = AsyncRealtimeClient(f"{url}/realtime/v1", key, **options)
    if token is not None:
        client.access_token = token
    return PythonPeer(client=client)


async def js_peer(node: Node, url: str, key: str, token: str | None, **options: Any) -> JsPeer:
    """A supabase-js client; its token comes from the `accessToken` callback, as in the dashboard."""
    peer = JsPeer(node=node, name=f"client{next(_names)}")
    node.listen(peer.name, peer.receive)
    if "timeout" in options:
        options["timeout"] *= 1000
    await node.call("open", client=peer.name, url=url, key=key, token=token, realtime=options)
    return peer
