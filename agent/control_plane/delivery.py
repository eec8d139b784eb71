"""`Delivery`: brings the items of one queue to the database in batches, one call at a time.

What arrives while a call is in flight goes with the next call. A batch that is refused because of an entry
(too large, malformed, a text that cannot be stored) is halved in order until the rest of it is accepted; a call that
fails in any other way is repeated whole after a pause.
"""

import asyncio
import logging
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from agent.control_plane.batch_size import BatchSize
from agent.control_plane.contract import BackboneCutOff, BackboneRefused, concerns_entry

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Route(Protocol[Item, Answer]):
    """What a `Delivery` needs to know of its items: the call that carries them and what an answer means."""

    @property
    def name(self) -> str:
        """Begins the names of log events: `events_cut_off`, `reports_cut_off`."""
        ...

    @property
    def in_order(self) -> bool:
        """True: a batch that failed is repeated before anything newer. False: after what waits by then."""
        ...

    def key(self, item: Item) -> Hashable:
        """Two items with the same key: the later one replaces the earlier."""
        ...

    def select(self, waiting: Iterable[Item], limit: int) -> list[Item]:
        """The next batch: at least one and at most `limit` of the items that wait (the oldest first)."""
        ...

    async def call(self, batch: Sequence[Item]) -> Answer:
        """One call. Raises `BackboneRefused`, or `BackboneCutOff` when the batch is too much for one statement."""
        ...

    async def accepted(self, batch: Sequence[Item], answer: Answer) -> None:
        """The database has answered for every item of the batch."""
        ...

    def refused(self, item: Item, error: BackboneRefused) -> None:
        """The database cannot read this item and never will; it is not repeated."""
        ...

    def failed(self, batch: Sequence[Item], error: Exception) -> float:
        """The call failed and nothing was accepted. Returns the seconds until it is repeated; raises to end the
        delivery."""
        ...


class Delivery(Generic[Item, Answer]):
    def __init__(self, route: Route[Item, Answer], largest_batch: int) -> None:
        self._route = route
        self._size = BatchSize(largest_batch)
        self._waiting: dict[Hashable, Item] = {}
        #: how many items the call in flight carries
        self.sending = 0

    @property
    def pending(self) -> int:
        """How many items have no answer yet."""
        return len(self._waiting) + self.sending

    @property
    def waiting(self) -> tuple[Item, ...]:
        """The items that are not in a call, in the order in which they will go."""
        return tuple(self._waiting.values())

    def get(self, key: Hashable) -> Item | None:
        """The waiting item with this key."""
        return self._waiting.get(key)

    def put(self, item: Item) -> None:
        """Add an item as the last one. It replaces a waiting one with its key."""
        key = self._route.key(item)
        self._waiting.pop(key, None)
        self._waiting[key] = item

    def put_first(self, items: Iterable[Item]) -> None:
        """Add items before all others. A waiting item with the same key is newer and stays as it is."""
        self._waiting = {self._route.key(item): item for item in items} | self._waiting

    def discard(self, item: Item) -> None:
        """Remove a waiting item."""
        del self._waiting[self._route.key(item)]

    async def run(self) -> None:
        """Deliver until nothing waits. Raises what `Route.failed` raises."""
        while self._waiting:
            batch = self._route.select(self._waiting.values(), self._size.limit)
            for item in batch:
                self.discard(item)
            try:
                self.sending = len(batch)
                await self._deliver(batch)
                continue
            except Exception as error:
                pause = self._route.failed(batch, error)
            finally:
                self.sending = 0
            self._put_back(batch)
            await asyncio.sleep(pause)

    def _put_back(self, batch: Sequence[Item]) -> None:
        if self._route.in_order:
            self.put_first(batch)
        else:
            for item in batch:
                self._waiting.setdefault(self._route.key(item), item)

    async def _deliver(self, batch: Sequence[Item]) -> None:
        try:
            answer = await self._route.call(batch)
        except BackboneRefused as refused:
            if not concerns_entry(refused.code):
                raise
            if len(batch) > 1:
                await self._in_halves(batch)  # one malformed item refuses the whole call
            else:
                self._route.refused(batch[0], refused)
            return
        except BackboneCutOff as slow:
            log.warning("%s_cut_off", self._route.name, extra={"count": len(batch), "error": str(slow)})
            self._size.cut_off(len(batch))
            await self._in_halves(batch)
            return
        self._size.went_well()
        await self._route.accepted(batch, answer)

    async def _in_halves(self, batch: Sequence[Item]) -> None:
        middle = len(batch) // 2
        await self._deliver(batch[:middle])
        await self._deliver(batch[middle:])
