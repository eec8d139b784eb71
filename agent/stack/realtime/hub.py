"""Topics and their listeners: fan-out of broadcasts, the message quota, presence."""

import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.stack.realtime.frames import Broadcast, Vsn, broadcast
from agent.stack.realtime.limits import Limits, RateMeter

log = logging.getLogger(__name__)
TOO_MANY_MESSAGES = "Too many messages per second"
Diff = dict[str, dict[str, list[dict[str, object]]]]


class Listener(Protocol):
    """A joined channel as the hub sees it."""

    @property
    def name(self) -> str: ...
    @property
    def private(self) -> bool: ...
    @property
    def vsn(self) -> Vsn: ...
    @property
    def hears_broadcasts(self) -> bool: ...
    @property
    def hears_presence(self) -> bool: ...
    def deliver(self, event: str, frame: bytes) -> None: ...
    def push(self, event: str, payload: object) -> None: ...
    def close_with_reason(self, text: str) -> None: ...


@dataclass(slots=True)
class Topic:
    """Listeners of one topic, and its presence entries: key → listener → meta."""

    listeners: dict[Listener, None] = field(default_factory=dict)
    present: dict[str, dict[Listener, dict[str, object]]] = field(default_factory=dict)


class Hub:
    """Private and public topics are separate, even with the same name."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._topics: dict[tuple[str, bool], Topic] = {}
        self.messages = RateMeter(limits.messages_per_second, limits.window_s, limits.window_buckets)
        self.presence = RateMeter(limits.presence_per_second, limits.window_s, limits.window_buckets)

    def join(self, listener: Listener) -> None:
        self._topics.setdefault((listener.name, listener.private), Topic()).listeners[listener] = None

    def leave(self, listener: Listener) -> None:
        key = (listener.name, listener.private)
        topic = self._topics.get(key)
        if topic is None:
            return
        topic.listeners.pop(listener, None)
        self.untrack(listener)
        if not topic.listeners:
            self._topics.pop(key, None)

    def broadcast(self, private: bool, item: Broadcast, skip: Listener | None = None) -> None:
        """Deliver to every listener of the topic except `skip`; encoded once per serializer."""
        topic = self._topics.get((item.topic, private))
        if topic is None:
            return
        frames: dict[Vsn, bytes | None] = {}
        for listener in list(topic.listeners):
            if listener is skip or not listener.hears_broadcasts:
                continue
            if self.messages.over:
                listener.close_with_reason(TOO_MANY_MESSAGES)
                continue
            vsn = listener.vsn
            if vsn not in frames:
                frames[vsn] = broadcast(vsn, item)
            frame = frames[vsn]
            if frame is not None:
                self.messages.count()
                listener.deliver(item.event, frame)

    # Presence

    def state(self, listener: Listener) -> dict[str, object]:
        """The `presence_state` payload of the listener's topic."""
        topic = self._topics.get((listener.name, listener.private))
        if topic is None:
            return {}
        return {key: {"metas": list(metas.values())} for key, metas in topic.present.items()}

    def track(self, listener: Listener, key: str, payload: Mapping[str, object]) -> None:
        """Announce or update a presence; an update carries `phx_ref_prev` and the old meta among the leaves."""
        topic = self._topics.get((listener.name, listener.private))
        if topic is None:
            return
        metas = topic.present.setdefault(key, {})
        old = metas.get(listener)
        meta: dict[str, object] = {**payload, "phx_ref": secrets.token_urlsafe(12)}
        leaves: Diff = {}
        if old is not None:
            meta["phx_ref_prev"] = old["phx_ref"]
            leaves = {key: {"metas": [old]}}
        metas[listener] = meta
        self._diff(topic, {key: {"metas": [meta]}}, leaves)

    def untrack(self, listener: Listener) -> None:
        topic = self._topics.get((listener.name, listener.private))
        if topic is None:
            return
        leaves: Diff = {}
        for key, metas in list(topic.present.items()):
            meta = metas.pop(listener, None)
            if meta is not None:
                leaves[key] = {"metas": [meta]}
            if not metas:
                del topic.present[key]
        if leaves:
            self._diff(topic, {}, leaves)

    def _diff(self, topic: Topic, joins: Diff, leaves: Diff) -> None:
        for listener in list(topic.listeners):
            if not listener.hears_presence:
                continue
            if self.presence.over:
                listener.close_with_reason("Too many presence messages per second")
                continue
            self.presence.count()
            listener.push("presence_diff", {"joins": joins, "leaves": leaves})

    def listeners(self) -> Iterator[Listener]:
        for topic in list(self._topics.values()):
            yield from list(topic.listeners)
