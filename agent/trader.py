"""`AccountTrader`: carries out the executions of one account during one session.

The way of an attempt: its turn in the lanes → may it be sent? → on the disk → may it still be sent? → the broker → its
ending, told as a report. What has no definitive answer is reported `unknown` at once and then looked for, in its lane but
outside the account's slots.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from agent.clock import DatabaseClock, Lease, boot_time
from agent.gate import Gate
from agent.journal import Entry, Journal, JournalError
from agent.lanes import OPENING, Lanes, Work
from agent.lookout import Lookout, Pace
from agent.model import Action, ExecutionId, Placed, Report, Result
from agent.orders import Ending, cancelled, ending_of, ending_told, expired, nothing_left, shows_nothing
from agent.remains import Remains
from agent.sender import Sender
from agent.session import AccountSession

log = logging.getLogger(__name__)

#: how often a session that may not trade yet looks whether it may
BEGIN_CHECK_S = 0.5

#: may be sent again while its time lasts: doing it twice does no more than doing it once
REPEATABLE: frozenset[Action] = frozenset({"close", "modify", "amend", "cancel"})

#: refusals that concern every order of the account until a person mends it
TRADING_OFF = frozenset({"autotrading_off", "investor_password"})

#: (work, report, ended): called for every report; `ended` is False for an `unknown` that is still looked for
Told = Callable[[Work, Report, bool], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """`place_timeout`: an order without an answer for so long is unknown. `longest_wait`: nothing is sent later after its
    receipt, whatever clocks and orders say."""

    place_timeout: timedelta = timedelta(seconds=30)
    longest_wait: timedelta = timedelta(seconds=10)
    drain_timeout: timedelta = timedelta(seconds=35)
    #: an adapter that does not let go of an order for so long is left behind
    stop_timeout: timedelta = timedelta(seconds=5)
    report_batch: int = 40
    #: so long after an open was given up it is looked for once more
    late_looks: tuple[timedelta, ...] = (timedelta(seconds=10), timedelta(minutes=1), timedelta(minutes=10))
    pace: Pace = field(default_factory=Pace)


class AccountTrader:
    def __init__(
        self,
        session: AccountSession,
        journal: Journal,
        clock: DatabaseClock,
        lease: Lease,
        settings: EngineSettings,
        told: Told,
        *,
        vouches_from: datetime,
    ) -> None:
        """`vouches_from`: what was queued later and is not in the journal was never sent (`Journal.vouches_from`)."""
        self.session = session
        self._vouches_from = vouches_from
        self._journal = journal
        self._clock = clock
        self._settings = settings
        self._gate = Gate(session, clock, lease)
        self._sender = Sender(session, clock, self._gate, settings.place_timeout)
        self._remains = Remains(session, journal, settings.pace.read_timeout)
        self._told = told
        self._lanes = Lanes(session.adapter.capabilities().orders_at_once)
        self._lookout = Lookout(session, clock, settings.pace)
        self._tasks: dict[asyncio.Task[None], Work] = {}
        self._timers: dict[Work, asyncio.TimerHandle] = {}
        self._wake: asyncio.TimerHandle | None = None
        self._moved = asyncio.Event()
        self._stopped = False

    # -- from outside ---------------------------------------------------------------------------------------

    def add(self, works: Iterable[Work]) -> None:
        added = list(works)
        for work in added:
            work.unknown = work.unknown or self._may_be_out_there(work)
        for work in self._lanes.add(added):
            self._tell_end(work, cancelled(work.dropped or "already_closed"))
        loop = asyncio.get_running_loop()
        for work in added:
            if work.stage == "queued" and not work.unknown:
                self._timers[work] = loop.call_later(max(0.0, work.deadline - boot_time()), self._expire, work)
        self._pump()

    def cancel(self, execution_id: ExecutionId) -> None:
        """Drop it if it is unsent."""
        for work in self._lanes.works():
            if work.execution.id == execution_id and not work.unknown:
                work.dropped = work.dropped or "cancel_requested"
                if work.stage == "queued":
                    self._drop(work, cancelled(work.dropped))
        self._pump()

    async def drain(self) -> None:
        """Wait until nothing is queued or at the broker (what is only looked for does not count). Bound the wait yourself."""
        while any(work.stage in ("queued", "running") for work in self._lanes.works()):
            self._moved.clear()
            await self._moved.wait()

    async def stop(self) -> None:
        """Report what was sent as unknown, forget what was not, send nothing more."""
        self._stopped = True
        self._gate.shut()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._wake is not None:
            self._wake.cancel()
        tasks = dict(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=self._settings.stop_timeout.total_seconds())
            if stuck:
                log.error("orders_do_not_end", extra={"account_id": self.session.account_id, "count": len(stuck)})
        for work in tasks.values():
            if work.stage == "running" and work.sent_at is not None:
                self._tell(work, Ending(outcome="unknown", reason="unknown", message="the connection ended"), ended=False)

    # -- turns ----------------------------------------------------------------------------------------------

    def _may_be_out_there(self, work: Work) -> bool:
        """Offered when somebody else, or a lost journal, may have sent it; or said to be in doubt by the database."""
        execution = work.execution
        return execution.investigate or execution.queued_at < self._vouches_from

    def _pump(self) -> None:
        if self._stopped:
            return
        early = (self.session.begins_at - self._clock.now()).total_seconds()
        if early > 0:
            if self._wake is None:
                # looked at again now and then: the moment may come earlier than it was told at first
                self._wake = asyncio.get_running_loop().call_later(min(early, BEGIN_CHECK_S), self._begin)
            return
        for work in self._lanes.startable():
            self._stop_timer(work)
            self._start(self._run(work), work)

    def _start(self, way: Coroutine[None, None, None], work: Work) -> None:
        task = asyncio.create_task(way, name=f"execution-{work.execution.id}")
        self._tasks[task] = work
        task.add_done_callback(self._finished)

    def _begin(self) -> None:
        self._wake = None
        self._pump()

    def _finished(self, task: "asyncio.Task[None]") -> None:
        del self._tasks[task]

    def _expire(self, work: Work) -> None:
        if work.stage == "queued":
            self._drop(work, expired("too_late", "its time was over before its turn came"))
            self._pump()

    def _drop(self, work: Work, ending: Ending) -> None:
        self._lanes.drop(work)
        self._tell_end(work, ending)

    def _stop_timer(self, work: Work) -> None:
        if (timer := self._timers.pop(work, None)) is not None:
            timer.cancel()

    # -- one attempt ----------------------------------------------------------------------------------------

    async def _run(self, work: Work) -> None:
        try:
            ending = await (self._recover(work) if work.unknown else self._send(work))
        except Exception as error:
            log.exception("execution_failed", extra={"execution_id": work.execution.id, "account_id": work.execution.account_id})
            maybe_sent = work.unknown or work.sent_at is not None
            why = f"{type(error).__name__}: {error}"
            ending = Ending(outcome="unknown", reason="unknown", message=why) if maybe_sent else expired("agent_error", why)
        if self._stopped:
            return
        self._lanes.end(work)
        if isinstance(ending, Report):
            self._told(work, ending, True)
            self._moved.set()
        else:
            self._tell_end(work, ending)
            if ending.reason == "not_found_after_unknown" and work.execution.action in OPENING:
                self._start(self._look_again(work), work)
        self._pump()

    async def _look_again(self, work: Work) -> None:
        """An open that left no trace is watched for: a broker may be slower than its settle time."""
        for pause in self._settings.late_looks:
            await asyncio.sleep(pause.total_seconds())
            found = await self._lookout.look_once(work.execution)
            if found is not None and not self._stopped:
                log.warning("order_turned_up_late", extra={"execution_id": work.execution.id})
                self._tell_end(work, found)
                return

    async def _send(self, work: Work) -> Ending | Report:
        if (why := self._gate.why_not(work)) is not None:
            return why
        orders = await self._remains.orders(work.execution)
        if isinstance(orders, Ending):
            return orders
        known = await self._begin_in_journal(work)
        if known is not None:
            return known if isinstance(known, Ending) else await self._known(work, known)
        if (why := self._gate.why_not(work)) is not None:
            return why
        results = await self._sender.place_all(work, orders)
        ending = ending_of(results)
        if shows_nothing(work.execution, ending):
            return await self._show(work, ending)
        if ending.reason == "invalid_volume":
            self.session.doubtful.add(work.execution.symbol)
        if ending.reason == "invalid_stops":  # the database chooses nearer levels by the prices that the broker judged by
            return replace(ending, quote=await self._sender.quote(work.execution.symbol))
        if ending.outcome != "unknown":
            return ending
        self._tell(work, ending, ended=False)
        self._watch(work)
        return await self._repeat_or_look(work, results)

    async def _show(self, work: Work, done: Ending) -> Ending:
        """It was carried out; what it made is looked for by its tag before it counts as completed."""
        message = "the broker confirmed it without saying what is held now: it is looked for by its tag"
        self._tell(work, replace(done, outcome="unknown", reason="unknown", message=message), ended=False)
        self._watch(work)
        return await self._lookout.show(work.execution, done)

    async def _recover(self, work: Work) -> Ending | Report:
        """It may have been sent: by an earlier run of this agent, or by another agent."""
        known = await self._begin_in_journal(work)
        if isinstance(known, Ending):
            log.warning("journal_unusable_for_recovery", extra={"execution_id": work.execution.id})
        elif known is not None and known.report is not None:
            return await self._told_before(work, known.report)
        return await self._repeat_or_look(work, [])

    async def _told_before(self, work: Work, report: Report) -> Ending | Report:
        """An outcome that shows nothing is looked up, however often it was told."""
        done = ending_told(report)
        return await self._show(work, done) if shows_nothing(work.execution, done) else report

    async def _known(self, work: Work, entry: Entry) -> Ending | Report:
        """The journal has this attempt already: it is told again, or looked for; never sent again."""
        if entry.report is not None:
            return await self._told_before(work, entry.report)
        work.unknown = True
        self._watch(work)
        return await self._repeat_or_look(work, [])

    async def _repeat_or_look(self, work: Work, results: Sequence[Result]) -> Ending:
        done = [result for result in results if isinstance(result, Placed)]
        while work.execution.action in REPEATABLE and self._gate.why_not(work) is None:
            orders = await self._remains.orders(work.execution)
            if isinstance(orders, Ending) and orders.outcome == "completed":
                return ending_of(done) if done else orders
            if isinstance(orders, Ending) or self._gate.why_not(work) is not None:
                break
            again = await self._sender.place_all(work, orders)
            ending = ending_of([*done, *again])
            if ending.outcome != "unknown":
                return ending
            done += [result for result in again if isinstance(result, Placed)]
            await asyncio.sleep(self._settings.pace.first.total_seconds())
        ending = await self._lookout.look(work.execution)
        return ending_of(done) if done and ending.outcome == "expired" else ending

    async def _begin_in_journal(self, work: Work) -> Entry | Ending | None:
        try:
            return await self._journal.begin(work.execution)
        except JournalError as error:
            return expired("journal_failed", str(error))

    def _watch(self, work: Work) -> None:
        self._lanes.watch(work)
        self._moved.set()
        self._pump()

    # -- telling ----------------------------------------------------------------------------------------------

    def _tell_end(self, work: Work, ending: Ending) -> None:
        self._stop_timer(work)
        self._tell(work, nothing_left(work.execution, ending, self.session.book), ended=True)
        self._moved.set()

    def _tell(self, work: Work, ending: Ending, *, ended: bool) -> None:
        execution = work.execution
        seq = self.session.take_seq()
        self.session.note(ending.positions, seq)
        self.session.land(execution.id)
        self._note_health(work, ending)
        report = Report(
            account_id=execution.account_id,
            session=self.session.session,
            seq=seq,
            execution_id=execution.id,
            attempt=execution.attempt,
            outcome=ending.outcome,
            reason=ending.reason,
            retryable=ending.retryable,
            message=ending.message[:500],
            adopted=ending.adopted,
            filled_lots=ending.lots,
            price=ending.price,
            positions=ending.positions,
            quote=ending.quote,
            received_at=work.received_at,
            sent_at=work.sent_at,
            done_at=max(work.sent_at or work.received_at, self._clock.now()),
        )
        self._told(work, report, ended)

    def _note_health(self, work: Work, ending: Ending) -> None:
        """An account that may not trade says so until an order of ours succeeds again."""
        if ending.outcome == "rejected" and ending.reason in TRADING_OFF:
            self.session.trouble("trading", f"{ending.reason}: {ending.message}")
        elif ending.outcome == "completed" and work.sent_at is not None:
            self.session.well("trading")
