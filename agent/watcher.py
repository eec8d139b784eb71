"""`Watcher`: what happens on an account, as numbered trade events (DESIGN §4.1, laws 5, 6, 7 and 10).

Pushes of the adapter become events at once. Besides, the account is read: first of all (the session's snapshot), now and
then, and whenever something does not fit. A read is one witness among others: what it says of a ticket never heard of is
news; what contradicts the book (a ticket missing, other lots, one come back) must be said by several good reads before it
is believed, for terminals answer with empty and with old books. A failed read says nothing.

A netting position that flips is told as `reduced`: the whole state carries the new side, and nothing is merged with it.
"""

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from agent.book import event_type, key_of, same_state
from agent.clock import DatabaseClock, boot_time
from agent.doubts import Doubts
from agent.journal import Journal
from agent.model import Change, Changed, Event, Position, Resync
from agent.outbox import RETRY_AFTER, EventOutbox
from agent.platforms.protocol import AccountChanged, AdapterError
from agent.reading import Read, read_account
from agent.session import AccountSession, Backbone, BackboneRefused, OnRefused, Submit

log = logging.getLogger(__name__)

#: numbers reserved per read for tickets never heard of; more of them wait for the next read
NUMBERS_FOR_NEWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherSettings:
    """How often the account is read although nothing was pushed, and how sure a read must be before it is believed."""

    verify_every: timedelta = timedelta(seconds=10)
    #: a contradiction between a read and the book must be seen by so many good reads (at least 2) ...
    reads_to_confirm: int = 3
    #: ... this far apart
    confirm_after: timedelta = timedelta(milliseconds=300)
    read_timeout: timedelta = timedelta(seconds=10)
    #: a change that an order of ours may have caused is held for its report, but not longer than this
    hold_limit: timedelta = timedelta(seconds=3)
    events_per_call: int = 200
    #: until a refused call, or a refused first snapshot, is tried again
    retry_after: timedelta = timedelta(seconds=RETRY_AFTER)

    def __post_init__(self) -> None:
        if self.reads_to_confirm < 2:
            raise ValueError("reads_to_confirm must be at least 2: one read proves no absence")


@dataclass(frozen=True, slots=True)
class _Held:
    change: Changed
    until: float


class Watcher:
    def __init__(
        self,
        session: AccountSession,
        journal: Journal,
        backbone: Backbone,
        clock: DatabaseClock,
        *,
        submit: Submit,
        on_refused: OnRefused,
        settings: WatcherSettings | None = None,
    ) -> None:
        """`submit` takes the executions that answers carry (`TradeCopyEngine.submit`); `on_refused(account_id, code)` is
        called once when the database refuses the account (TC103 for example), and `run` then returns."""
        self._session = session
        self._journal = journal
        self._clock = clock
        self._on_refused = on_refused
        self._settings = settings or WatcherSettings()
        self._outbox = EventOutbox(
            session,
            journal,
            backbone,
            submit=submit,
            events_per_call=self._settings.events_per_call,
            retry_after=self._settings.retry_after.total_seconds(),
            on_missing=self._show_again,
        )
        self._inbox: deque[Change] = deque()
        self._held: list[_Held] = []
        self._doubts = Doubts(session.book, self._settings.reads_to_confirm)
        self._read_at = 0.0
        self._publish = 0
        #: how many events were told
        self._told = 0
        self._unchanged_at: datetime | None = None

    # -- from outside ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until cancelled. Raises `AdapterError` when the connection is lost: log in again with a new session."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen())
                group.create_task(self._outbox.run())
                group.create_task(self._watch())
        except BaseExceptionGroup as errors:
            self._explain(errors)

    async def ready(self) -> None:
        """Wait until the database has accepted the first snapshot of this session. (Bound the wait yourself.)"""
        await self._outbox.opened.wait()

    def resync(self) -> None:
        """Read everything again now, and tell the database the whole state even if nothing differs. Never blocks."""
        self._publish += 1
        self._read_at = 0.0
        self._session.news.set()

    def _show_again(self) -> None:
        """What ended while nobody watched is closed by a second good snapshot: it need not wait for the next regular read."""
        self._publish += 1
        self._read_at = min(self._read_at, boot_time() + self._settings.confirm_after.total_seconds())
        self._session.news.set()

    def _explain(self, errors: BaseExceptionGroup[BaseException]) -> None:
        """Of several failures the one that decides what happens next."""
        refusal, _ = errors.split(BackboneRefused)
        lost, others = errors.split(AdapterError)
        for refused in refusal.exceptions if refusal else ():
            if isinstance(refused, BackboneRefused):
                log.warning("account_refused", extra={"account_id": self._session.account_id, "code": refused.code})
                self._on_refused(self._session.account_id, refused.code)
                return
        if lost is not None and others is None:
            changed, _ = lost.split(AccountChanged)
            raise (changed or lost).exceptions[0]
        raise errors

    # -- the loop -------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for change in self._session.adapter.changes():
            self._inbox.append(self._on_database_clock(change) if isinstance(change, Changed) else change)
            self._session.news.set()
        raise AdapterError("the stream of changes ended")

    async def _watch(self) -> None:
        await self._first_snapshot()
        while True:
            self._session.news.clear()
            self._take_in()
            if boot_time() >= self._read_at:
                await self._verify()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._session.news.wait()

    def _pause(self) -> float:
        """Seconds until something is to be done by itself."""
        return min([self._read_at, *(held.until for held in self._held)]) - boot_time()

    def _read_after(self, pause: timedelta) -> None:
        self._read_at = boot_time() + pause.total_seconds()

    # -- pushes ---------------------------------------------------------------------------------------------

    def _take_in(self) -> None:
        now = boot_time()
        held, self._held = self._held, []
        for each in held:
            if now < each.until and self._session.in_flight(each.change.position):
                self._held.append(each)
            else:
                self._changed(each.change)
        while self._inbox:
            change = self._inbox.popleft()
            if isinstance(change, Resync):
                log.info("resync", extra={"account_id": self._session.account_id, "why": change.why})
                self._read_at = 0.0
            elif self._session.in_flight(change.position):
                # Our own order in all likelihood: its report will say so. If it does not in time, the database sorts it out.
                self._held.append(_Held(change, now + self._settings.hold_limit.total_seconds()))
            else:
                self._changed(change)

    def _changed(self, change: Changed) -> None:
        book, position = self._session.book, change.position
        before = book.before(position)
        if position.lots == 0:
            if before is None:
                return
            if change.evidence is None:
                self._read_at = 0.0
                return
        key = key_of(position)
        known = book.get(key)
        if change.seq < book.seq_of(key) and known is not None and change.evidence == "deal":
            # A deal that ended a ticket is the last word on it, though the answer to an order of ours has overtaken it.
            change = replace(change, seq=self._session.take_seq())
        if change.seq < book.seq_of(key):
            # Something newer spoke of it, our own report for example. If the two disagree, look.
            if (known is None) != (position.lots == 0) or (known is not None and not same_state(known.position, position)):
                self._read_at = 0.0
            return
        self._doubts.forget(key)
        self._tell(change, before)

    def _tell(self, change: Changed, before: Position | None) -> None:
        """Make the event, unless it says what is known."""
        position = change.position
        known = self._session.book.get(key_of(position))
        if known is not None and same_state(known.position, position):
            self._session.book.put(position, change.seq)
            return
        kind = event_type(before, position)
        ended = kind in ("closed", "cancelled")
        self._session.book.put(position, change.seq)
        self._told += 1
        self._outbox.put(
            Event(
                account_id=self._session.account_id,
                session=self._session.session,
                seq=change.seq,
                type=kind,
                position=position,
                evidence=change.evidence if ended else None,
                close_reason=change.close_reason if kind == "closed" else None,
                detected_at=change.detected_at,
                unchanged_at=min(change.unchanged_at, change.detected_at),
                deal_price=change.deal_price,
                dealt_at=change.dealt_at,
            )
        )

    def _on_database_clock(self, change: Changed) -> Changed:
        """Adapters stamp what they see with this machine's clock."""
        offset = timedelta(milliseconds=self._clock.offset_ms)
        return replace(
            change,
            detected_at=change.detected_at + offset,
            unchanged_at=change.unchanged_at + offset,
            dealt_at=None if change.dealt_at is None else change.dealt_at + offset,
        )

    # -- reads ----------------------------------------------------------------------------------------------

    async def _read(self) -> Read | None:
        """A read of everything, while pushes go on being told: a terminal may take seconds to answer, or never do."""
        reading = asyncio.ensure_future(read_account(self._session, self._settings.read_timeout))
        try:
            while not reading.done():
                news = asyncio.ensure_future(self._session.news.wait())
                try:
                    until_held = min((held.until for held in self._held), default=None)
                    patience = None if until_held is None else max(0.0, until_held - boot_time())
                    await asyncio.wait({reading, news}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                if not reading.done():
                    self._session.news.clear()
                    self._take_in()
            return reading.result()
        finally:
            reading.cancel()

    async def _first_snapshot(self) -> None:
        """What the account holds, before anything else of this session is told. A read that lacks what was last seen, or
        that is empty where nothing is remembered, must be confirmed."""
        session, settings = self._session, self._settings
        seen = self._journal.last_seen(session.account_id)
        agreeing, last = 0, None
        while True:
            seq, started = session.take_seq(), self._clock.now()
            read = await read_account(session, settings.read_timeout, first=True)
            if read is not None:
                tickets = frozenset(position.ticket for position in read)
                agreeing = agreeing + 1 if tickets == last else 1
                last = tickets
                plausible = bool(tickets) if seen is None else seen.tickets <= tickets
                if plausible or agreeing >= settings.reads_to_confirm:
                    break
            await asyncio.sleep(settings.confirm_after.total_seconds())
        session.book.replace_all(read, seq)
        self._unchanged_at = seen.at if seen is not None else None
        self._tell_all(seq, started)
        self._unchanged_at = started
        self._read_after(settings.verify_every)

    def _tell_all(self, seq: int, started: datetime) -> None:
        self._outbox.put(
            Event(
                account_id=self._session.account_id,
                session=self._session.session,
                seq=seq,
                type="snapshot",
                positions=self._session.book.positions(),
                detected_at=started,
                unchanged_at=self._unchanged_at,
            )
        )

    async def _verify(self) -> None:
        """Read, and tell what is new or confirmed. Its numbers are reserved before the read begins."""
        session, settings = self._session, self._settings
        started, publish, told = self._clock.now(), self._publish, self._told
        numbers = session.seq.reserve(len(session.book) + NUMBERS_FOR_NEWS + 1)
        self._read_after(settings.confirm_after)
        read = await self._read()
        if read is None:
            return
        believed = self._doubts.judge(read, lambda state: self._may_judge(state, numbers[0]))
        for state, number in zip(believed, numbers[1:], strict=False):
            self._tell_read(state, number, started)
        if self._doubts or len(believed) >= len(numbers) - 1:
            return
        self._unchanged_at = started
        if publish and self._told != told:
            # The whole state must not carry a lower number than the news just told: it goes with the next read.
            self._read_at = 0.0
            return
        if publish:
            self._publish -= publish
            self._tell_all(numbers[0], started)
        if not self._publish and self._read_at > 0:
            self._read_after(settings.verify_every)
        if self._outbox.idle and not self._inbox:
            self._journal.saw(session.account_id, started, (known.position.ticket for known in session.book))

    def _tell_read(self, state: Position, number: int, started: datetime) -> None:
        change = Changed(
            seq=number,
            position=state,
            detected_at=self._clock.now(),
            unchanged_at=self._unchanged_at or started,
            evidence="snapshots" if state.lots == 0 else None,
        )
        self._tell(change, self._session.book.before(state))

    def _may_judge(self, state: Position, seq: int) -> bool:
        """Not if something newer than this read has spoken of it, waits to do so, or an order of ours is at work on it."""
        key = key_of(state)
        return (
            self._session.book.seq_of(key) <= seq
            and not self._session.in_flight(state)
            and not any(isinstance(change, Changed) and key_of(change.position) == key for change in self._inbox)
            and not any(key_of(held.change.position) == key for held in self._held)
        )
