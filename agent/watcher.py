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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from agent.book import Key, event_type, gone, key_of, same_state
from agent.clock import DatabaseClock, boot_time
from agent.journal import Journal
from agent.model import Change, Changed, Event, Position, Resync, Ticket
from agent.outbox import EventOutbox
from agent.platforms.protocol import AdapterError
from agent.session import AccountSession, Backbone, BackboneRefused, OnRefused, Submit

log = logging.getLogger(__name__)

Read = tuple[Position, ...]

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

    def __post_init__(self) -> None:
        if self.reads_to_confirm < 2:
            raise ValueError("reads_to_confirm must be at least 2: one read proves no absence")


@dataclass(frozen=True, slots=True)
class _Held:
    change: Changed
    until: float


@dataclass(frozen=True, slots=True)
class _Doubt:
    """What reads say against the book, and how often in a row."""

    state: Position
    reads: int


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
        called once when the database refuses the account (TC103, TC104), and `run` then returns."""
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
            on_missing=self._show_again,
        )
        self._inbox: deque[Change] = deque()
        self._held: list[_Held] = []
        self._doubts: dict[Key, _Doubt] = {}
        self._read_at = 0.0
        self._publish = 0
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
            raise lost.exceptions[0]
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
        if change.seq < book.seq_of(key):
            # Something newer spoke of it, our own report for example. If the two disagree, look.
            known = book.get(key)
            if (known is None) != (position.lots == 0) or (known is not None and not same_state(known.position, position)):
                self._read_at = 0.0
            return
        self._doubts.pop(key, None)
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
            )
        )

    def _on_database_clock(self, change: Changed) -> Changed:
        """Adapters stamp what they see with this machine's clock."""
        offset = timedelta(milliseconds=self._clock.offset_ms)
        return replace(change, detected_at=change.detected_at + offset, unchanged_at=change.unchanged_at + offset)

    # -- reads ----------------------------------------------------------------------------------------------

    async def _read(self, *, first: bool = False) -> Read | None:
        """Everything open; None if that cannot be known now."""
        adapter = self._session.adapter
        try:
            async with asyncio.timeout(self._settings.read_timeout.total_seconds()):
                orders = await adapter.orders()
                positions = await adapter.positions()
                expected = first or any(known.position.kind == "position" for known in self._session.book)
                if not positions and expected and (await adapter.account()).margin > 0:
                    raise AdapterError("no positions are shown, but margin is in use")
        except (AdapterError, TimeoutError) as error:
            log.warning("read_failed", extra={"account_id": self._session.account_id, "error": str(error)})
            return None
        filled = {order.ticket for order in orders}
        return tuple(order for order in orders if all(order.ticket != p.replaces for p in positions)) + tuple(
            self._with_lineage(position, filled) for position in positions
        )

    def _with_lineage(self, position: Position, pending: set[Ticket]) -> Position:
        """Where a filled order keeps its ticket, the position continues it."""
        was_order = self._session.book.get(Key("order", position.ticket)) is not None
        if position.replaces is None and was_order and position.ticket not in pending:
            return replace(position, replaces=position.ticket)
        return position

    async def _first_snapshot(self) -> None:
        """What the account holds, before anything else of this session is told. A read that lacks what was last seen, or
        that is empty where nothing is remembered, must be confirmed."""
        session, settings = self._session, self._settings
        seen = self._journal.last_seen(session.account_id)
        agreeing, last = 0, None
        while True:
            seq, started = session.take_seq(), self._clock.now()
            read = await self._read(first=True)
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
        started, publish = self._clock.now(), self._publish
        numbers = session.seq.reserve(len(session.book) + NUMBERS_FOR_NEWS + 1)
        self._read_after(settings.confirm_after)
        read = await self._read()
        if read is None:
            return
        left = deque(numbers[1:])
        self._compare(read, numbers[0], left, started)
        if self._doubts or not left:
            return
        self._unchanged_at = started
        if publish and len(left) < len(numbers) - 1:
            # The whole state must not carry a lower number than the news just told: it goes with the next read.
            self._read_at = 0.0
            return
        if publish:
            self._publish -= publish
            self._tell_all(numbers[0], started)
        if not self._publish:
            self._read_after(settings.verify_every)
        if self._outbox.idle and not self._inbox:
            self._journal.saw(session.account_id, started, (known.position.ticket for known in session.book))

    def _compare(self, read: Read, seq: int, numbers: deque[int], started: datetime) -> None:
        """Tell news at once; count what contradicts the book, and tell it when enough reads in a row have said the same."""
        doubts, self._doubts = self._doubts, {}
        for state in [*read, *self._missing(read)]:
            key = key_of(state)
            if not self._may_judge(state, key, seq):
                continue
            known = self._session.book.get(key)
            if known is not None and same_state(known.position, state):
                continue
            earlier = doubts.get(key)
            reads = 1 + (earlier.reads if earlier is not None and same_state(earlier.state, state) else 0)
            is_news = state.lots > 0 and not self._session.book.ever_knew(key)
            if is_news or reads >= self._settings.reads_to_confirm:
                if numbers:
                    self._tell_read(state, numbers.popleft(), started)
            else:
                self._doubts[key] = _Doubt(state, reads)

    def _tell_read(self, state: Position, number: int, started: datetime) -> None:
        change = Changed(
            seq=number,
            position=state,
            detected_at=self._clock.now(),
            unchanged_at=self._unchanged_at or started,
            evidence="snapshots" if state.lots == 0 else None,
        )
        self._tell(change, self._session.book.before(state))

    def _missing(self, read: Read) -> Iterator[Position]:
        """What the book holds and the read lacks. A ticket that another one continues is not missing."""
        present = {key_of(position) for position in read}
        continued = {position.replaces for position in read}
        for known in self._session.book:
            if key_of(known.position) not in present and known.position.ticket not in continued:
                yield gone(known.position)

    def _may_judge(self, state: Position, key: Key, seq: int) -> bool:
        """Not if something newer than this read has spoken of it, waits to do so, or an order of ours is at work on it."""
        return (
            self._session.book.seq_of(key) <= seq
            and not self._session.in_flight(state)
            and not any(isinstance(change, Changed) and key_of(change.position) == key for change in self._inbox)
            and not any(key_of(held.change.position) == key for held in self._held)
        )
