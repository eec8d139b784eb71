"""`EventOutbox`: the trade events of one account on their way to the database, in the order of their numbers.

One call at a time; what happens while it is under way goes with the next one. Every event stands in the journal until it
is accepted. Events that an earlier session could not deliver follow the first snapshot of this one, as history.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from agent.batch import BatchSize
from agent.journal import Journal, JournalError
from agent.model import Event, Ticket
from agent.session import (
    LEASE_OVER,
    MALFORMED,
    AccountSession,
    Backbone,
    BackboneCutOff,
    BackboneRefused,
    Submit,
)

log = logging.getLogger(__name__)

#: positions per call, over all its events: well under 1 MB
POSITIONS_PER_CALL = 1_000
RETRY_AFTER = 5.0
#: a heartbeat, which renews the lease, is due within a second
LEASE_RETRY_AFTER = 0.5


class EventOutbox:
    def __init__(
        self,
        session: AccountSession,
        journal: Journal,
        backbone: Backbone,
        *,
        submit: Submit,
        events_per_call: int,
        retry_after: float = RETRY_AFTER,
        on_missing: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_missing`: the database holds something open that a snapshot lacked; it wants to see a second one."""
        self._session = session
        self._journal = journal
        self._backbone = backbone
        self._submit = submit
        self._size = BatchSize(events_per_call)
        self._retry_after = retry_after
        self._on_missing = on_missing
        self._waiting: dict[tuple[int, int], Event] = {}
        self._last_of: dict[Ticket, tuple[int, int]] = {}
        self._sending = False
        self._new = asyncio.Event()
        self.opened = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way: the database knows all that this session has seen."""
        return not self._waiting and not self._sending

    def put(self, event: Event) -> None:
        """A `modified` replaces one of the same ticket that still waits if nothing else happened to it in between: only the
        last SL and TP matter. Nothing else is ever merged."""
        key = (event.session, event.seq)
        if event.position is not None:
            ticket = event.position.ticket
            earlier = self._waiting.get(self._last_of.get(ticket, (0, 0)))
            if event.type == "modified" and earlier is not None and earlier.type == "modified":
                del self._waiting[(earlier.session, earlier.seq)]
                self._journal.drop_events([(earlier.account_id, earlier.session, earlier.seq)])
            self._last_of[ticket] = key
        self._waiting[key] = event
        self._journal.put_events([event])
        self._new.set()

    async def run(self) -> None:
        """Deliver until cancelled. Raises `BackboneRefused` when the database refuses the account."""
        while True:
            if not self._waiting:
                self._last_of.clear()
                self._new.clear()
                await self._new.wait()
            batch = self._take()
            self._sending = True
            try:
                await self._deliver(batch)
            except BackboneRefused as refused:
                if refused.concerns_account:
                    raise
                log.error("events_refused", extra={"code": refused.code, "account_id": self._session.account_id})
                await self._put_back(batch, LEASE_RETRY_AFTER if refused.code == LEASE_OVER else self._retry_after)
            except Exception:
                log.exception("events_failed", extra={"account_id": self._session.account_id})
                await self._put_back(batch, self._retry_after)
            finally:
                self._sending = False

    def _take(self) -> list[Event]:
        batch: list[Event] = []
        weight = 0
        for event in self._waiting.values():
            weight += 1 + len(event.positions)
            # Until the database has the first snapshot of the session it is sent alone.
            if batch and (weight > POSITIONS_PER_CALL or len(batch) >= self._size.limit or not self.opened.is_set()):
                break
            batch.append(event)
        for event in batch:
            del self._waiting[(event.session, event.seq)]
        return batch

    async def _put_back(self, batch: Sequence[Event], pause: float) -> None:
        self._waiting = {(event.session, event.seq): event for event in batch} | self._waiting
        await asyncio.sleep(pause)

    async def _deliver(self, batch: Sequence[Event]) -> None:
        try:
            answer = await self._backbone.queue_trade_copy(self._session.account_id, self._session.epoch, batch)
        except BackboneRefused as refused:
            if refused.code not in MALFORMED:
                raise
            if len(batch) > 1:
                await self._in_halves(batch)  # one of them poisons the call
                return
            self._refused(batch[0], refused.code, refused.message)
            self._drop(batch)
            return
        except BackboneCutOff as slow:
            log.warning("events_cut_off", extra={"count": len(batch), "error": str(slow)})
            self._size.cut_off(len(batch))
            await self._in_halves(batch)
            return
        self._size.went_well()
        self._submit(answer.executions)
        self._drop(batch)
        if any(result.missing for result in answer.results):
            self._on_missing()
        for event, result in zip(batch, answer.results, strict=False):
            if result.status in ("refused", "kept"):
                self._refused(event, result.code, result.error)
            elif event.type == "snapshot" and not self.opened.is_set():
                await self._add_history()
                self.opened.set()
                self._session.well("snapshot")

    async def _in_halves(self, batch: Sequence[Event]) -> None:
        middle = len(batch) // 2
        await self._deliver(batch[:middle])
        await self._deliver(batch[middle:])

    def _refused(self, event: Event, code: str | None, error: str | None) -> None:
        if event.type == "snapshot" and not self.opened.is_set():
            # Without it nothing of this session is planned on. The account says so, and shows itself again in a while.
            self._session.trouble(
                "snapshot", f"snapshot_refused: the database cannot take what the account holds ({code}: {error})"
            )
            asyncio.get_running_loop().call_later(self._retry_after, self._on_missing)
        log.error(
            "event_refused",
            extra={"account_id": event.account_id, "event": f"{event.session}:{event.seq}", "code": code, "error": error},
        )

    def _drop(self, batch: Sequence[Event]) -> None:
        self._journal.drop_events((event.account_id, event.session, event.seq) for event in batch)

    async def _add_history(self) -> None:
        try:
            older = await self._journal.undelivered_events(self._session.account_id, self._session.session)
        except JournalError as error:
            log.error("events_not_recovered", extra={"error": str(error)})
            return
        self._waiting = {(event.session, event.seq): event for event in older} | self._waiting
