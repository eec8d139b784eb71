"""`EventOutbox`: the trade events of one account on their way to the database, in the order of their numbers.

An event stays in the journal until the database has accepted it. Events that an earlier session could not deliver
follow the first snapshot of this session, as history.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from agent.account.book import Key, key_of
from agent.account.session import AccountSession
from agent.control_plane.contract import LEASE_OVER, Backbone, BackboneRefused, QueueAnswer, Submit
from agent.control_plane.delivery import Delivery
from agent.journal.journal import Journal, JournalError
from agent.model import Event

log = logging.getLogger(__name__)

#: positions per call, over all its events: well under 1 MB
POSITIONS_PER_CALL = 1_000
#: seconds until a refused or failed call is repeated
RETRY_AFTER = 5.0
#: the same when the lease is over: a heartbeat, which renews it, is due within a second
LEASE_RETRY_AFTER = 0.5

#: session and seq of an event
EventKey = tuple[int, int]


class EventOutbox:
    """The `Route` of its own `Delivery`."""

    name: Final = "events"
    in_order: Final = True

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
        """`on_missing` is called when a snapshot lacked something that the database holds open: it needs a second
        snapshot to believe that."""
        self._session = session
        self._journal = journal
        self._backbone = backbone
        self._submit = submit
        self._retry_after = retry_after
        self._on_missing = on_missing
        self._last_of: dict[Key, EventKey] = {}
        self._new = asyncio.Event()
        #: an event was refused by itself: what happened is read from a snapshot, and texts stay out of it
        self._distrusts_texts = False
        self.delivery = Delivery[Event, QueueAnswer](self, events_per_call)
        #: set once the database has accepted the first snapshot of the session
        self.opened = asyncio.Event()

    @property
    def idle(self) -> bool:
        """The database has accepted every event of this session."""
        return self.delivery.pending == 0

    def put(self, event: Event) -> None:
        """Queue an event. A `modified` replaces a waiting `modified` of the same ticket if nothing else happened to
        the ticket in between, because only the last SL and TP matter. No other events are merged."""
        if event.position is not None:
            concerns = key_of(event.position)
            earlier = self.delivery.get(self._last_of.get(concerns, (0, 0)))
            if event.type == "modified" and earlier is not None and earlier.type == "modified":
                self.delivery.discard(earlier)
                self._journal.drop_events([(earlier.account_id, earlier.session, earlier.seq)])
            self._last_of[concerns] = self.key(event)
        self.delivery.put(event)
        self._journal.put_events([event])
        self._new.set()

    async def run(self) -> None:
        """Deliver until cancelled. Raises `BackboneRefused` when the database refuses the account."""
        while True:
            await self.delivery.run()
            self._last_of.clear()
            self._new.clear()
            await self._new.wait()

    # -- Route -----------------------------------------------------------------------------------------------

    def key(self, event: Event) -> EventKey:
        return (event.session, event.seq)

    def select(self, waiting: Iterable[Event], limit: int) -> list[Event]:
        batch: list[Event] = []
        weight = 0
        for event in waiting:
            weight += 1 + len(event.positions)
            # The first snapshot of a session is sent alone.
            if batch and (weight > POSITIONS_PER_CALL or len(batch) >= limit or not self.opened.is_set()):
                break
            batch.append(event)
        return batch

    async def call(self, batch: Sequence[Event]) -> QueueAnswer:
        sent = [_without_texts(event) for event in batch] if self._distrusts_texts else batch
        return await self._backbone.queue_trade_copy(self._session.account_id, self._session.epoch, sent)

    async def accepted(self, batch: Sequence[Event], answer: QueueAnswer) -> None:
        self._submit(answer.executions)
        self._drop(batch)
        if any(event.type not in ("snapshot", "modified") for event in batch):
            self._session.filled.set()
        if any(result.missing for result in answer.results):
            self._on_missing()
        for event, result in zip(batch, answer.results, strict=False):
            if result.status == "refused" and event.type != "snapshot":
                self.refused(event, BackboneRefused(result.code or "TC401", result.error or ""))
            elif result.status in ("refused", "kept"):
                self._note_refusal(event, result.code, result.error)
            elif event.type == "snapshot" and not self.opened.is_set():
                await self._add_history()
                self.opened.set()
                self._session.clear_problem("snapshot")
            if event.type == "snapshot" and result.status == "accepted" and not result.missing:
                self._trust_again()

    def refused(self, event: Event, error: BackboneRefused) -> None:
        self._note_refusal(event, error.code, error.message)
        self._journal.keep_refused(event, str(error))
        self._drop([event])
        if event.session == self._session.session and (event.type != "snapshot" or self.opened.is_set()):
            self._read_again(event, error)

    def _read_again(self, event: Event, error: BackboneRefused) -> None:
        """An event got lost on its way, so the database no longer knows the account. A full snapshot without free
        texts shows it what the event said: a close inside it is found missing, and copied."""
        self._distrusts_texts = True
        what = event.type if event.position is None else f"{event.type} of {event.position.ticket}"
        self._session.set_problem(
            "event",
            f"event_refused: the database cannot take an event of this account ({what}: {error.code} {error.message}); "
            "all positions are read and reported again",
        )
        if event.type == "snapshot":
            asyncio.get_running_loop().call_later(self._retry_after, self._on_missing)
        else:
            self._on_missing()

    def _trust_again(self) -> None:
        self._distrusts_texts = False
        self._session.clear_problem("event")

    def failed(self, batch: Sequence[Event], error: Exception) -> float:
        account = {"account_id": self._session.account_id}
        if not isinstance(error, BackboneRefused):
            log.error("events_failed", exc_info=error, extra=account)
            return self._retry_after
        if error.concerns_account:
            raise error
        log.error("events_refused", extra={"code": error.code, **account})
        return LEASE_RETRY_AFTER if error.code == LEASE_OVER else self._retry_after

    def _note_refusal(self, event: Event, code: str | None, error: str | None) -> None:
        if event.type == "snapshot" and not self.opened.is_set():
            # Without its first snapshot the database plans nothing for this session. The account's status says so, and
            # the account is read and reported again after a pause.
            self._session.set_problem(
                "snapshot", f"snapshot_refused: the database cannot take what the account holds ({code}: {error})"
            )
            asyncio.get_running_loop().call_later(self._retry_after, self._on_missing)
        log.error(
            "event_refused",
            extra={
                "account_id": event.account_id,
                "event": f"{event.session}:{event.seq}",
                "code": code,
                "error": error,
            },
        )

    def _drop(self, batch: Sequence[Event]) -> None:
        self._journal.drop_events((event.account_id, event.session, event.seq) for event in batch)

    async def _add_history(self) -> None:
        try:
            older = await self._journal.undelivered_events(self._session.account_id, self._session.session)
        except JournalError as error:
            log.error("events_not_recovered", extra={"error": str(error)})
            return
        self.delivery.put_first(older)


def _without_texts(event: Event) -> Event:
    """The same event without what a person or a broker wrote."""
    return replace(
        event,
        position=None if event.position is None else replace(event.position, comment=""),
        positions=tuple(replace(position, comment="") for position in event.positions),
    )
