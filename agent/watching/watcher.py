"""`Watcher`: reports what happens on an account as numbered trade events (laws 4.1.5, 4.1.6, 4.1.7 and 4.1.10).

Pushes of the adapter become events at once. The account is also read: at the beginning (the session's snapshot),
periodically, and whenever a push does not fit the book. A new ticket in a read is believed at once. A read that
contradicts the book (a missing ticket, other lots, a ticket that was closed) must be confirmed by several reads,
because terminals may show empty or old states. A failed read proves nothing.

A netting position that flips is reported as `reduced`: the event's state carries the new side, and no other event is
merged with it.
"""

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from agent import limits
from agent.account.book import event_type, key_of, same_state
from agent.account.session import AccountSession
from agent.clock import DatabaseClock, boot_time
from agent.control_plane.contract import Backbone, BackboneRefused, OnRefused, Submit
from agent.journal.journal import Journal
from agent.model import Change, Changed, Event, Position, Resync
from agent.platforms.adapter import AccountChanged, AdapterError
from agent.watching.account_read import Read, read_account
from agent.watching.discrepancies import Discrepancies
from agent.watching.event_outbox import RETRY_AFTER, EventOutbox

log = logging.getLogger(__name__)

#: numbers reserved per read for new tickets; further ones wait for the next read
NUMBERS_FOR_NEW_TICKETS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherSettings:
    """How often the account is read, and when a read is believed."""

    #: pause between two reads while nothing is pushed
    verify_every: timedelta = timedelta(seconds=10)
    #: reads in a row (at least 2) that must agree before they override the book ...
    reads_to_confirm: int = 3
    #: ... and the pause between them
    confirm_after: timedelta = timedelta(milliseconds=300)
    read_timeout: timedelta = timedelta(seconds=10)
    #: time without a read that counts, after which the account's status says so
    unread_after: timedelta = timedelta(seconds=30)
    #: longest time that a change which our own order may have caused waits for the order's report
    hold_limit: timedelta = timedelta(seconds=3)
    events_per_call: int = 200
    #: pause before a refused call, or a refused first snapshot, is repeated
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
        """`submit` gets the executions in answers (`TradeCopyEngine.submit`). `on_refused(account_id, code)` is called
        once when the database refuses the account (TC103, for example); `run` then returns."""
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
            on_missing=self._request_snapshot,
        )
        self._inbox: deque[Change] = deque()
        self._held: list[_Held] = []
        self._discrepancies = Discrepancies(session.book, self._settings.reads_to_confirm)
        self._read_at = 0.0
        #: boot time of the last read that counts
        self._was_read_at = 0.0
        self._publish = 0
        #: number of events reported so far
        self._reported = 0
        self._unchanged_at: datetime | None = None

    # -- from outside ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until cancelled. Raises `AdapterError` when the connection is lost: the account then needs a new
        session."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen())
                group.create_task(self._outbox.run())
                group.create_task(self._watch())
        except BaseExceptionGroup as errors:
            self._explain(errors)

    async def ready(self) -> None:
        """Wait until the database has accepted the first snapshot of this session. Has no time limit of its own."""
        await self._outbox.opened.wait()

    def resync(self) -> None:
        """Read the account now and report a snapshot even if nothing differs. Never blocks."""
        self._publish += 1
        self._read_at = 0.0
        self._session.changed.set()

    def _request_snapshot(self) -> None:
        """Report a second snapshot soon: it closes what ended while the account was not watched, without waiting for
        the next periodic read."""
        self._publish += 1
        self._read_at = min(self._read_at, boot_time() + self._settings.confirm_after.total_seconds())
        self._session.changed.set()

    def _explain(self, errors: BaseExceptionGroup[BaseException]) -> None:
        """Handle the failure that decides what happens next: a refusal by the database, else a lost connection."""
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
            if isinstance(change, Changed) and not limits.is_known(change.position):
                self._session.leave_out(change.position)
                continue
            self._inbox.append(self._on_database_clock(change) if isinstance(change, Changed) else change)
            self._session.changed.set()
        raise AdapterError("the stream of changes ended")

    async def _watch(self) -> None:
        await self._first_snapshot()
        while True:
            self._session.changed.clear()
            self._take_in()
            if boot_time() >= self._read_at:
                await self._verify()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._session.changed.wait()

    def _pause(self) -> float:
        """Seconds until the next read or the end of a hold."""
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
                # Probably the effect of our own order: wait for its report. After the hold limit the change is reported
                # as an event, and the database matches the two.
                self._held.append(_Held(change, now + self._settings.hold_limit.total_seconds()))
            else:
                self._changed(change)

    def _changed(self, change: Changed) -> None:
        book = self._session.book
        position = book.named(change.position)
        change = replace(change, position=position)
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
            # A deal that closed a ticket is final, even if the answer to our own order got the higher seq.
            change = replace(change, seq=self._session.take_seq())
        if change.seq < book.seq_of(key):
            # A newer message, for example our own report, has reported this ticket. If the two differ, read again.
            differs = position.lots != 0 if known is None else not same_state(known.position, position)
            if differs:
                self._read_at = 0.0
            return
        self._discrepancies.forget(key)
        self._report(change, before)

    def _report(self, change: Changed, before: Position | None) -> None:
        """Queue an event for the change, unless the book already has that state."""
        position = change.position
        known = self._session.book.get(key_of(position))
        if known is not None and same_state(known.position, position):
            self._session.book.put(position, change.seq)
            return
        if known is not None and known.position.symbol != position.symbol:  # its broker has renamed it
            self._session.outdated_specs |= {known.position.symbol, position.symbol}
        kind = event_type(before, position)
        ended = kind in ("closed", "cancelled")
        self._session.book.put(position, change.seq)
        self._reported += 1
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
        """Convert the times of a change from this machine's clock to the database's."""
        offset = timedelta(milliseconds=self._clock.offset_ms)
        return replace(
            change,
            detected_at=change.detected_at + offset,
            unchanged_at=change.unchanged_at + offset,
            dealt_at=None if change.dealt_at is None else change.dealt_at + offset,
        )

    # -- reads ----------------------------------------------------------------------------------------------

    async def _read(self) -> Read | None:
        """Read the account while pushes are still processed: a terminal may take seconds to answer, or never answer."""
        reading = asyncio.ensure_future(read_account(self._session, self._settings.read_timeout))
        try:
            while not reading.done():
                changed = asyncio.ensure_future(self._session.changed.wait())
                try:
                    until_held = min((held.until for held in self._held), default=None)
                    patience = None if until_held is None else max(0.0, until_held - boot_time())
                    await asyncio.wait({reading, changed}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if not reading.done():
                    self._session.changed.clear()
                    self._take_in()
            return reading.result()
        finally:
            reading.cancel()

    async def _first_snapshot(self) -> None:
        """Report what the account holds, before any other event of this session. A read must be confirmed by more reads
        if it lacks a ticket that was held when the account was last seen, or if it is empty and the account was never
        seen."""
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
        self._report_snapshot(seq, started)
        self._unchanged_at = started
        self._was_read_at = boot_time()
        self._read_after(settings.verify_every)

    def _report_snapshot(self, seq: int, started: datetime) -> None:
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
        """Read, and report what is new or confirmed. The seqs are reserved before the read begins (law 4.1.6)."""
        session, settings = self._session, self._settings
        started, publish, reported = self._clock.now(), self._publish, self._reported
        numbers = session.seq.reserve(len(session.book) + NUMBERS_FOR_NEW_TICKETS + 1)
        self._read_after(settings.confirm_after)
        read = await self._read()
        if read is None:
            self._note_unread()
            return
        self._was_read_at = boot_time()
        session.clear_problem("read")
        believed = self._discrepancies.judge(read, lambda state: self._may_judge(state, numbers[0]))
        for state, number in zip(believed, numbers[1:], strict=False):
            self._report_read(state, number, started)
        if self._discrepancies or len(believed) >= len(numbers) - 1:
            return
        self._unchanged_at = started
        if publish and self._reported != reported:
            # A snapshot must not have a lower seq than the events just reported: the next read reports it.
            self._read_at = 0.0
            return
        if publish:
            self._publish -= publish
            self._report_snapshot(numbers[0], started)
        if not self._publish and self._read_at > 0:
            self._read_after(settings.verify_every)
        if self._outbox.idle and not self._inbox:
            self._journal.saw(session.account_id, started, (known.position.ticket for known in session.book))

    def _note_unread(self) -> None:
        """A connection that shows nothing for long is not well, though it stands."""
        seconds = self._settings.unread_after.total_seconds()
        if boot_time() - self._was_read_at > seconds:
            self._session.set_problem(
                "read",
                f"positions_unread: what the account holds could not be read for over {seconds:.0f} s; its agent"
                " goes on trying",
            )

    def _report_read(self, state: Position, number: int, started: datetime) -> None:
        change = Changed(
            seq=number,
            position=state,
            detected_at=self._clock.now(),
            unchanged_at=self._unchanged_at or started,
            evidence="snapshots" if state.lots == 0 else None,
        )
        self._report(change, self._session.book.before(state))

    def _may_judge(self, state: Position, seq: int) -> bool:
        """Whether this read may decide about a state: not if a message with a higher seq has reported it, if a pushed
        change of it waits, or if one of our orders in flight may change it."""
        key = key_of(state)
        return (
            self._session.book.seq_of(key) <= seq
            and not self._session.in_flight(state)
            and not any(isinstance(change, Changed) and key_of(change.position) == key for change in self._inbox)
            and not any(key_of(held.change.position) == key for held in self._held)
        )
