"""What the parts of a connection need from their server."""

from collections.abc import Coroutine
from typing import Protocol

from agent.stack.realtime.faults import Faults
from agent.stack.realtime.guests import Guests
from agent.stack.realtime.hub import Hub
from agent.stack.realtime.limits import Limits, RateMeter
from agent.stack.realtime.policies import Policies
from agent.stack.realtime.storage import MessageStore
from agent.stack.realtime.tokens import Verify


class Host(Protocol):
    """The Realtime server as its connections see it. `verify` turns a token into claims; `guests` None: no limits."""

    verify: Verify
    guests: Guests | None
    limits: Limits
    faults: Faults
    hub: Hub
    joins: RateMeter
    policies: Policies
    store: MessageStore

    def spawn(self, work: Coroutine[object, object, None]) -> None: ...
    async def streaming(self) -> bool: ...
