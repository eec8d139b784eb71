"""`AccountExecutor`: carries out the executions of one account during one session.

The path of an attempt: its turn in the lanes → checked by the send gate → written to the journal → checked again → sent
to the broker → its outcome reported. An attempt without a definitive answer is reported `unknown` at once; its outcome
is then looked up while it keeps its lane but gives up its slot.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from agent.account.session import AccountSession
from agent.clock import DatabaseClock, Lease, boot_time
from agent.execution.lanes import OPENING, Lanes, Work
from agent.execution.outcome import (
    Outcome,
    cancelled,
    completed_if_gone,
    expired,
    lacks_positions,
    outcome_of,
    outcome_of_report,
)
from agent.execution.outcome_resolver import OutcomeResolver, Pace
from agent.execution.send_gate import SendGate
from agent.execution.sender import Sender
from agent.execution.step_remainder import StepRemainder
from agent.journal.journal import Entry, Journal, JournalError
from agent.model import Action, ExecutionId, Placed, Report, Result

log = logging.getLogger(__name__)

#: seconds between two checks whether a session that may not trade yet may begin
BEGIN_CHECK_S = 0.5

#: idempotent: may be sent again before its deadline
REPEATABLE: frozenset[Action] = frozenset({"close", "modify", "amend", "cancel"})

#: refusals that affect every order of the account until a person fixes the cause
TRADING_OFF = frozenset({"autotrading_off", "investor_password"})

#: (work, report, ended): called for every report; `ended` is False for an `unknown` that is still being looked up
OnReport = Callable[[Work, Report, bool], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    #: an order without an answer after this time is unknown
    place_timeout: timedelta = timedelta(seconds=30)
    #: longest time from receipt to sending, whatever clocks and the order's own deadline say
    longest_wait: timedelta = timedelta(seconds=10)
    drain_timeout: timedelta = timedelta(seconds=35)
    #: longest wait for the adapter to cancel orders in flight when a session stops
    stop_timeout: timedelta = timedelta(seconds=5)
    #: most reports per call
    report_batch: int = 40
    #: when an open that left no trace is looked up once more: pauses, one after the other
    late_lookups: tuple[timedelta, ...] = (timedelta(seconds=10), timedelta(minutes=1), timedelta(minutes=10))
    pace: Pace = field(default_factory=Pace)


class AccountExecutor:
    def __init__(
        self,
        session: AccountSession,
        journal: Journal,
        clock: DatabaseClock,
        lease: Lease,
        settings: EngineSettings,
        on_report: OnReport,
        *,
        vouches_from: datetime,
    ) -> None:
        """`vouches_from`: an execution that was queued later and is not in the journal was never sent
        (`Journal.vouches_from`)."""
        self.session = session
        self._vouches_from = vouches_from
        self._journal = journal
        self._clock = clock
        self._settings = settings
        self._gate = SendGate(session, clock, lease)
        self._sender = Sender(session, clock, self._gate, settings.place_timeout)
        self._remainder = StepRemainder(session, journal, settings.pace.read_timeout)
        self._on_report = on_report
        self._lanes = Lanes(session.adapter.capabilities().orders_at_once)
        self._resolver = OutcomeResolver(session, clock, settings.pace)
        self._tasks: dict[asyncio.Task[None], Work] = {}
        self._timers: dict[Work, asyncio.TimerHandle] = {}
        self._wake: asyncio.TimerHandle | None = None
        self._moved = asyncio.Event()
        self._stopped = False

    # -- from outside ---------------------------------------------------------------------------------------

    def add(self, works: Iterable[Work]) -> None:
        added = list(works)
        for work in added:
            work.unknown = work.unknown or self._may_have_been_sent(work)
        for work in self._lanes.add(added):
            self._report_outcome(work, cancelled(work.dropped or "already_closed"))
        loop = asyncio.get_running_loop()
        for work in added:
            if work.stage == "queued" and not work.unknown:
                self._timers[work] = loop.call_later(max(0.0, work.deadline - boot_time()), self._expire, work)
        self._pump()

    def cancel(self, execution_id: ExecutionId) -> None:
        """Drop the execution if it has not been sent."""
        for work in self._lanes.works():
            if work.execution.id == execution_id and not work.unknown:
                work.dropped = work.dropped or "cancel_requested"
                if work.stage == "queued":
                    self._drop(work, cancelled(work.dropped))
        self._pump()

    async def drain(self) -> None:
        """Wait until nothing is queued or at the broker; lookups of unknown outcomes do not count. Has no time limit of
        its own."""
        while any(work.stage in ("queued", "running") for work in self._lanes.works()):
            self._moved.clear()
            await self._moved.wait()

    async def stop(self) -> None:
        """Send nothing more. Reports orders in flight as unknown and forgets what was not sent."""
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
                self._report(
                    work, Outcome(status="unknown", reason="unknown", message="the connection ended"), ended=False
                )

    # -- turns ----------------------------------------------------------------------------------------------

    def _may_have_been_sent(self, work: Work) -> bool:
        """Whether another agent, or this one before it lost its journal, may have sent it, or the database says that
        its outcome is uncertain (`investigate`)."""
        execution = work.execution
        return execution.investigate or execution.queued_at < self._vouches_from

    def _pump(self) -> None:
        if self._stopped:
            return
        early = (self.session.begins_at - self._clock.now()).total_seconds()
        if early > 0:
            if self._wake is None:
                # checked repeatedly, because a later heartbeat may move `begins_at` forward
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

    def _drop(self, work: Work, outcome: Outcome) -> None:
        self._lanes.drop(work)
        self._report_outcome(work, outcome)

    def _stop_timer(self, work: Work) -> None:
        if (timer := self._timers.pop(work, None)) is not None:
            timer.cancel()

    # -- one attempt ----------------------------------------------------------------------------------------

    async def _run(self, work: Work) -> None:
        try:
            outcome = await (self._recover(work) if work.unknown else self._send(work))
        except Exception as error:
            log.exception(
                "execution_failed", extra={"execution_id": work.execution.id, "account_id": work.execution.account_id}
            )
            maybe_sent = work.unknown or work.sent_at is not None
            why = f"{type(error).__name__}: {error}"
            outcome = (
                Outcome(status="unknown", reason="unknown", message=why) if maybe_sent else expired("agent_error", why)
            )
        if self._stopped:
            return
        self._lanes.end(work)
        if isinstance(outcome, Report):
            self._on_report(work, outcome, True)
            self._moved.set()
        else:
            self._report_outcome(work, outcome)
            if outcome.reason == "not_found_after_unknown" and work.execution.action in OPENING:
                self._start(self._look_up_later(work), work)
        self._pump()

    async def _look_up_later(self, work: Work) -> None:
        """Look an open that left no trace up again later: a broker may be slower than its settle time."""
        for pause in self._settings.late_lookups:
            await asyncio.sleep(pause.total_seconds())
            found = await self._resolver.find_once(work.execution)
            if found is not None and not self._stopped:
                log.warning("order_turned_up_late", extra={"execution_id": work.execution.id})
                self._report_outcome(work, found)
                return

    async def _send(self, work: Work) -> Outcome | Report:
        if (why := self._gate.why_not(work)) is not None:
            return why
        orders = await self._remainder.orders(work.execution)
        if isinstance(orders, Outcome):
            return orders
        known = await self._begin_in_journal(work)
        if work.unwritten:
            return _number_taken(work)
        if known is not None:
            return known if isinstance(known, Outcome) else await self._handle_known(work, known)
        if (why := self._gate.why_not(work)) is not None:
            return why
        results = await self._sender.place_all(work, orders)
        outcome = outcome_of(results)
        if lacks_positions(work.execution, outcome):
            return await self._find_positions(work, outcome)
        if outcome.reason == "invalid_volume":
            self.session.outdated_specs.add(work.execution.symbol)
        if outcome.reason == "invalid_stops":
            # The database chooses new levels from the prices that the broker compared the old ones with.
            return replace(outcome, quote=await self._sender.quote(work.execution.symbol))
        if outcome.status != "unknown":
            return outcome
        self._report(work, outcome, ended=False)
        self._release_slot(work)
        return await self._repeat_or_look(work, results)

    async def _find_positions(self, work: Work, done: Outcome) -> Outcome:
        """The broker executed the order but did not say which positions resulted: find them by the order's tag before
        it counts as completed."""
        message = "the broker confirmed the order without its positions; they are looked up by its tag"
        self._report(work, replace(done, status="unknown", reason="unknown", message=message), ended=False)
        self._release_slot(work)
        return await self._resolver.find_positions(work.execution, done)

    async def _recover(self, work: Work) -> Outcome | Report:
        """Resolve an execution that an earlier run of this agent, or another agent, may have sent."""
        known = await self._begin_in_journal(work)
        if work.unwritten:  # another agent may have sent it
            return await self._resolver.resolve(work.execution)
        if isinstance(known, Outcome):
            log.warning("journal_unusable_for_recovery", extra={"execution_id": work.execution.id})
        elif known is not None and known.report is not None:
            return await self._report_again(work, known.report)
        return await self._repeat_or_look(work, [])

    async def _report_again(self, work: Work, report: Report) -> Outcome | Report:
        """Repeat a report. An outcome without positions is looked up instead, however often it was reported."""
        done = outcome_of_report(report)
        return await self._find_positions(work, done) if lacks_positions(work.execution, done) else report

    async def _handle_known(self, work: Work, entry: Entry) -> Outcome | Report:
        """The journal already has this attempt: report its outcome again, or look it up. It is never sent again."""
        if entry.report is not None:
            return await self._report_again(work, entry.report)
        work.unknown = True
        self._release_slot(work)
        return await self._repeat_or_look(work, [])

    async def _repeat_or_look(self, work: Work, results: Sequence[Result]) -> Outcome:
        done = [result for result in results if isinstance(result, Placed)]
        while work.execution.action in REPEATABLE and self._gate.why_not(work) is None:
            orders = await self._remainder.orders(work.execution)
            if isinstance(orders, Outcome) and orders.status == "completed":
                return outcome_of(done) if done else orders
            if isinstance(orders, Outcome) or self._gate.why_not(work) is not None:
                break
            again = await self._sender.place_all(work, orders)
            outcome = outcome_of([*done, *again])
            if outcome.status != "unknown":
                return outcome
            done += [result for result in again if isinstance(result, Placed)]
            await asyncio.sleep(self._settings.pace.first.total_seconds())
        outcome = await self._resolver.resolve(work.execution)
        return outcome_of(done) if done and outcome.status == "expired" else outcome

    async def _begin_in_journal(self, work: Work) -> Entry | Outcome | None:
        try:
            known = await self._journal.begin(work.execution)
        except JournalError as error:
            return expired("journal_failed", str(error))
        work.unwritten = known is not None and known.is_other
        return known

    def _release_slot(self, work: Work) -> None:
        self._lanes.release_slot(work)
        self._moved.set()
        self._pump()

    # -- reports ----------------------------------------------------------------------------------------------

    def _report_outcome(self, work: Work, outcome: Outcome) -> None:
        self._stop_timer(work)
        self._report(work, completed_if_gone(work.execution, outcome, self.session.book), ended=True)
        self._moved.set()

    def _report(self, work: Work, outcome: Outcome, *, ended: bool) -> None:
        execution = work.execution
        seq = self.session.take_seq()
        self.session.note(outcome.positions, seq)
        self.session.end_flight(execution.id)
        self._note_health(work, outcome)
        report = Report(
            account_id=execution.account_id,
            session=self.session.session,
            seq=seq,
            execution_id=execution.id,
            attempt=execution.attempt,
            outcome=outcome.status,
            reason=outcome.reason,
            retryable=outcome.retryable,
            message=outcome.message[:500],
            adopted=outcome.adopted,
            filled_lots=outcome.lots,
            price=outcome.price,
            positions=outcome.positions,
            quote=outcome.quote,
            planned_at=execution.planned_at,
            received_at=work.received_at,
            sent_at=work.sent_at,
            done_at=max(work.sent_at or work.received_at, self._clock.now()),
        )
        self._on_report(work, report, ended)

    def _note_health(self, work: Work, outcome: Outcome) -> None:
        """After such a refusal the account's status says that it cannot trade, until one of our orders succeeds."""
        if outcome.status == "rejected" and outcome.reason in TRADING_OFF:
            self.session.set_problem("trading", f"{outcome.reason}: {outcome.message}")
        elif outcome.status == "completed" and work.sent_at is not None:
            self.session.clear_problem("trading")


def _number_taken(work: Work) -> Outcome:
    """A restored database reuses numbers: the broker's records under this number belong to the earlier order."""
    log.critical("number_taken", extra={"execution_id": work.execution.id, "account_id": work.execution.account_id})
    why = "this agent has used the execution number for another order; nothing was sent"
    return Outcome(status="rejected", reason="number_taken", message=why)
