"""The test hook: injects network and server faults into frames and sockets.

Rules apply to frames that leave the server. A rule matches a topic (without `realtime:`; heartbeats have the topic
`phoenix`) and an event (the broadcast's own event, or `phx_reply`, `system`, …) by shell patterns.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from typing import Literal, Protocol, assert_never

Action = Literal["drop", "delay", "duplicate", "reorder"]


class Socket(Protocol):
    """What a fault needs from a connection."""

    def write(self, frame: bytes) -> None: ...
    def topics(self) -> Iterable[str]: ...
    def close(self, code: int, reason: str = "") -> None: ...
    def abort(self) -> None: ...
    def silence(self) -> None: ...
    def crash(self, topic: str) -> None: ...


@dataclass(slots=True, eq=False)
class Rule:
    """One fault. `times`: how many more frames it affects (None: all). `delay_ms`: the delay; for `reorder`, how long a
    frame is held back so that a later one can overtake it. `hits` counts affected frames."""

    action: Action
    topic: str = "*"
    event: str = "*"
    delay_ms: float = 200
    times: int | None = None
    id: int = 0
    hits: int = 0
    _held: list[Callable[[], None]] = field(default_factory=list)

    def matches(self, topic: str, event: str) -> bool:
        return self.times != 0 and fnmatchcase(topic, self.topic) and fnmatchcase(event, self.event)


class Faults:
    """All faults of a server. Costs almost nothing when unused: the hot path checks only `active`."""

    def __init__(self) -> None:
        self.active = False
        self.refuse_with: int | None = None
        self._rules: list[Rule] = []
        self._sockets: set[Socket] = set()
        self._ids = count(1)
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    # Rules

    def add(self, rule: Rule) -> Rule:
        """Add a rule. Rules are tried in order, and the first match wins."""
        rule.id = next(self._ids)
        self._rules.append(rule)
        self.active = True
        return rule

    def drop(self, topic: str = "*", event: str = "*", *, times: int | None = None) -> Rule:
        return self.add(Rule("drop", topic, event, times=times))

    def delay(self, delay_ms: float, topic: str = "*", event: str = "*", *, times: int | None = None) -> Rule:
        return self.add(Rule("delay", topic, event, delay_ms=delay_ms, times=times))

    def duplicate(self, topic: str = "*", event: str = "*", *, times: int | None = None) -> Rule:
        return self.add(Rule("duplicate", topic, event, times=times))

    def reorder(self, topic: str = "*", event: str = "*", *, times: int | None = None, delay_ms: float = 200) -> Rule:
        """Swap neighbours: a matching frame is sent after the next matching one (or after `delay_ms` if none comes)."""
        return self.add(Rule("reorder", topic, event, times=times, delay_ms=delay_ms))

    def remove(self, rule: Rule) -> None:
        if rule in self._rules:
            self._rules.remove(rule)
        _release(rule)
        self.active = bool(self._rules)

    def clear(self) -> None:
        """Remove all rules and send the frames that were held back. Silenced and cut sockets stay as they are."""
        for rule in list(self._rules):
            self.remove(rule)
        self.refuse_with = None

    def refuse(self, status: int | None) -> None:
        """Answer new handshakes with this HTTP status (None: accept them again)."""
        self.refuse_with = status

    def rules(self) -> list[Rule]:
        return list(self._rules)

    def rule(self, rule_id: int) -> Rule | None:
        return next((rule for rule in self._rules if rule.id == rule_id), None)

    async def hit(self, rule: Rule, times: int = 1, *, timeout_s: float = 10) -> None:
        """Wait until a rule has affected that many frames. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: rule.hits >= times)

    # Sockets

    def cut(self, topic: str = "*", *, code: int | None = None, reason: str = "") -> int:
        """Close the sockets that joined a matching topic, with a close code or by TCP abort (None).

        Returns their number.
        """
        sockets = self._having(topic)
        for socket in sockets:
            if code is None:
                socket.abort()
            else:
                socket.close(code, reason)
        return len(sockets)

    def black_hole(self, topic: str = "*") -> int:
        """Stop reading from and writing to the sockets without closing them. Returns their number."""
        sockets = self._having(topic)
        for socket in sockets:
            socket.silence()
        return len(sockets)

    def crash(self, topic: str = "*") -> int:
        """End channels as on hosted: `phx_error`, after which a client is expected to rejoin. Returns their number."""
        victims = [(s, t) for s in self._sockets for t in list(s.topics()) if fnmatchcase(t, topic)]
        for socket, name in victims:
            socket.crash(name)
        return len(victims)

    def _having(self, topic: str) -> list[Socket]:
        return [s for s in self._sockets if topic == "*" or any(fnmatchcase(t, topic) for t in s.topics())]

    def joined(self) -> list[list[str]]:
        """The topics of every open socket."""
        return [sorted(socket.topics()) for socket in self._sockets]

    # Called by the server

    def opened(self, socket: Socket) -> None:
        self._sockets.add(socket)

    def closed(self, socket: Socket) -> None:
        self._sockets.discard(socket)

    def route(self, socket: Socket, topic: str, event: str, frame: bytes) -> None:
        """Send a frame as the first matching rule says."""
        rule = next((rule for rule in self._rules if rule.matches(topic, event)), None)
        if rule is None:
            socket.write(frame)
            return
        rule.hits += 1
        if rule.times is not None:
            rule.times -= 1
        self._note()
        match rule.action:
            case "drop":
                pass
            case "duplicate":
                socket.write(frame)
                socket.write(frame)
            case "delay":
                asyncio.get_running_loop().call_later(rule.delay_ms / 1000, socket.write, frame)
            case "reorder":
                _reorder(rule, socket, frame)
            case _:
                assert_never(rule.action)

    def _note(self) -> None:
        task = asyncio.get_running_loop().create_task(self._notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _reorder(rule: Rule, socket: Socket, frame: bytes) -> None:
    if rule._held:
        socket.write(frame)
        _release(rule)
        return

    def send() -> None:
        socket.write(frame)

    def overdue() -> None:
        if send in rule._held:
            rule._held.remove(send)
            send()

    rule._held.append(send)
    asyncio.get_running_loop().call_later(rule.delay_ms / 1000, overdue)


def _release(rule: Rule) -> None:
    held, rule._held = rule._held, []
    for send in held:
        send()
