"""`TradeCopyEngine`: executions → lanes → orders → reports. The only part of the agent that sends orders.

An attempt is identified by (id, attempt), is written to the journal before its order is sent, and is sent at most once.
An outcome that is not known is reported `unknown` and looked up; the order is never sent again on a guess (law 4.5).
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from agent.account.session import AccountSession
from agent.clock import DatabaseClock, Lease, boot_time
from agent.control_plane.contract import Backbone
from agent.control_plane.owners import Owners
from agent.execution.account_executor import AccountExecutor, EngineSettings
from agent.execution.lanes import Work
from agent.execution.outcome import lacks_positions, outcome_of_report
from agent.execution.report_outbox import ReportOutbox
from agent.journal.journal import Journal
from agent.model import AccountId, Execution, ExecutionId, Offered, Report, Unreadable

__all__ = ["EngineSettings", "TradeCopyEngine"]

log = logging.getLogger(__name__)

Key = tuple[ExecutionId, int]

#: outcomes kept in memory; older ones are in the journal
OUTCOMES_KEPT = 5_000
CANCELS_KEPT = 5_000
#: seconds since the database accepted a report after which a repeated offer means that it has lost the report
REPORT_AGAIN_AFTER = 3.0


@dataclass(slots=True)
class _Reported:
    report: Report
    #: boot time at which the database accepted it; None until then
    accepted_at: float | None = None


class TradeCopyEngine:
    """Construct it inside a running event loop; use it as `async with`, or call `close()`."""

    def __init__(
        self,
        journal: Journal,
        backbone: Backbone,
        clock: DatabaseClock,
        lease: Lease,
        settings: EngineSettings | None = None,
        *,
        owners: Owners | None = None,
    ) -> None:
        """`owners`: which accounts share calls; without it each account's reports go in calls of their own."""
        self._journal = journal
        self._clock = clock
        self._lease = lease
        self._settings = settings or EngineSettings()
        self._executors: dict[AccountId, AccountExecutor] = {}
        self._attaching: dict[AccountId, asyncio.Lock] = {}
        self._draining: set[AccountId] = set()
        #: attempts without an outcome
        self._open: dict[Key, Work] = {}
        #: received before their account was attached, or for a later epoch than the account's
        self._early: dict[Key, Work] = {}
        self._reported: OrderedDict[Key, _Reported] = OrderedDict()
        self._cancelled: OrderedDict[ExecutionId, None] = OrderedDict()
        self._outbox = ReportOutbox(
            journal,
            backbone,
            owners=owners or Owners(),
            submit=self.submit,
            accepted=self._accepted,
            batch=self._settings.report_batch,
        )
        self._reporting = asyncio.create_task(self._outbox.run(), name="reporter")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def attach(self, session: AccountSession) -> None:
        """Start or resume trading an account in a new session. Attempts without an outcome in the journal are looked up
        first.

        Raises `JournalError` when the session cannot be written to the journal: then the account is not traded.
        """
        account_id = session.account_id
        async with self._lock(account_id):
            await self._detach(account_id, drain=False)
            vouches_from = self._vouches_from(session)
            await self._journal.remember_session(account_id, session.session, vouches_from)
            unresolved = await self._journal.unresolved(account_id)
            executor = AccountExecutor(
                session,
                self._journal,
                self._clock,
                self._lease,
                self._settings,
                self._on_report,
                vouches_from=vouches_from,
            )
            works = [self._work(execution, unknown=True) for execution in unresolved]
            for key in [work.key for work in works]:
                self._early.pop(key, None)
            early = [work for work in self._early.values() if self._is_for(work.execution, session)]
            for work in early:
                del self._early[work.key]
            works += [work for work in early if boot_time() < work.deadline]
            self._open.update((work.key, work) for work in works)
            self._executors[account_id] = executor
            executor.add(works)
            self._cancel_known(executor, works)

    async def detach(self, account_id: AccountId, *, drain: bool) -> None:
        """Stop trading an account. `drain`: finish what is queued first. Then orders in flight are reported unknown,
        and what was not sent is forgotten (the database offers it again). Does nothing for an account that is not
        attached."""
        async with self._lock(account_id):
            await self._detach(account_id, drain=drain)

    def submit(self, executions: Iterable[Offered]) -> None:
        """Take executions from a broadcast, a heartbeat or an answer, in any order; duplicates are ignored. Never
        blocks."""
        fresh: dict[AccountId, list[Work]] = {}
        for execution in executions:
            key = (execution.id, execution.attempt)
            if isinstance(execution, Unreadable):
                self._reject_unreadable(execution)
                continue
            if key in self._open or key in self._early:
                continue
            executor = self._executors.get(execution.account_id)
            if (reported := self._reported.get(key)) is not None:
                if executor is None or not _needs_positions(execution, reported):
                    self._report_again(reported)
                    continue
                del self._reported[key]
            work = self._work(execution)
            if executor is None or execution.account_id in self._draining or execution.epoch > executor.session.epoch:
                self._keep_early(work)
            else:
                self._open[key] = work
                fresh.setdefault(execution.account_id, []).append(work)
        for account_id, works in fresh.items():
            executor = self._executors[account_id]
            executor.add(works)
            self._cancel_known(executor, works)

    def cancel(self, ids: Iterable[ExecutionId]) -> None:
        """The database asks to drop these executions if they are not sent yet, including those that arrive later. Each
        one that is dropped is reported."""
        for execution_id in ids:
            self._cancelled[execution_id] = None
            self._cancelled.move_to_end(execution_id)
            accounts = {work.execution.account_id for key, work in self._open.items() if key[0] == execution_id}
            for account_id in accounts:
                self._executors[account_id].cancel(execution_id)
        while len(self._cancelled) > CANCELS_KEPT:
            self._cancelled.popitem(last=False)

    def begin_anew(self) -> None:
        """The database was restored from a backup and may reuse numbers: forget what is kept in memory under them. The
        journal still knows its orders."""
        self._reported.clear()
        self._cancelled.clear()
        self._early.clear()

    @property
    def in_flight(self) -> int:
        """Executions without an outcome plus reports not yet accepted. Above 0, the agent sends a heartbeat every
        second."""
        return len(self._open) + self._outbox.pending

    async def close(self) -> None:
        """Detach every account without draining, then stop reporting. Reports that are not accepted stay in the
        journal."""
        for account_id in list(self._executors):
            await self.detach(account_id, drain=False)
        self._reporting.cancel()
        await asyncio.gather(self._reporting, return_exceptions=True)

    # -- inside ----------------------------------------------------------------------------------------------

    def _lock(self, account_id: AccountId) -> asyncio.Lock:
        return self._attaching.setdefault(account_id, asyncio.Lock())

    async def _detach(self, account_id: AccountId, *, drain: bool) -> None:
        executor = self._executors.get(account_id)
        if executor is None:
            return
        if drain:
            self._draining.add(account_id)
            try:
                async with asyncio.timeout(self._settings.drain_timeout.total_seconds()):
                    await executor.drain()
            except TimeoutError:
                log.warning("drain_timed_out", extra={"account_id": account_id})
            finally:
                self._draining.discard(account_id)
        del self._executors[account_id]
        await executor.stop()
        for key in [key for key, work in self._open.items() if work.execution.account_id == account_id]:
            del self._open[key]

    def _vouches_from(self, session: AccountSession) -> datetime:
        """An execution that was queued before this moment may have been sent although the journal does not have it."""
        if not session.continues:
            return session.opened_at
        return self._journal.vouches_from(session.account_id) or datetime.min.replace(tzinfo=UTC)

    def _work(self, execution: Execution, *, unknown: bool = False) -> Work:
        now = self._clock.now()
        wait = min((execution.send_before - now).total_seconds(), self._settings.longest_wait.total_seconds())
        return Work(execution=execution, received_at=now, deadline=boot_time() + wait, unknown=unknown)

    def _is_for(self, execution: Execution, session: AccountSession) -> bool:
        return execution.account_id == session.account_id and execution.epoch <= session.epoch

    def _keep_early(self, work: Work) -> None:
        """Forgetting one of these loses nothing: the database offers an execution again until it is reported."""
        now = boot_time()
        for key in [key for key, early in self._early.items() if early.deadline <= now]:
            del self._early[key]
        if work.deadline > now:
            self._early[work.key] = work

    def _cancel_known(self, executor: AccountExecutor, works: Iterable[Work]) -> None:
        for work in works:
            if work.execution.id in self._cancelled and work.stage != "ended":
                executor.cancel(work.execution.id)

    def _on_report(self, work: Work, report: Report, ended: bool) -> None:
        """An executor reports. The report is in the journal and queued before anything else happens to the attempt."""
        if report.outcome != "unknown" and not work.unwritten:
            self._journal.answered(work.execution, report)
        if ended:
            self._open.pop(work.key, None)
            if report.outcome != "unknown":
                self._reported[work.key] = _Reported(report)
                while len(self._reported) > OUTCOMES_KEPT:
                    self._reported.popitem(last=False)
        self._outbox.put(report)

    def _reject_unreadable(self, offered: Unreadable) -> None:
        """Report an execution that this agent cannot read as rejected: once, and again if the database repeats the
        offer."""
        key = (offered.id, offered.attempt)
        if (reported := self._reported.get(key)) is not None:
            self._report_again(reported)
            return
        log.error("execution_unreadable", extra={"execution_id": offered.id, "error": offered.why})
        executor = self._executors.get(offered.account_id)
        report = Report(
            account_id=offered.account_id,
            session=0 if executor is None else executor.session.session,
            seq=0 if executor is None else executor.session.take_seq(),
            execution_id=offered.id,
            attempt=offered.attempt,
            outcome="rejected",
            reason="unreadable_order",
            message=f"this agent cannot read the order: {offered.why}"[:500],
        )
        self._reported[key] = _Reported(report)
        self._outbox.put(report)

    def _accepted(self, report: Report) -> None:
        reported = self._reported.get((report.execution_id, report.attempt))
        if reported is not None and report.outcome != "unknown":
            reported.accepted_at = boot_time()
        executor = self._executors.get(report.account_id)
        if executor is not None and report.filled_lots:
            executor.session.filled.set()

    def _report_again(self, reported: _Reported) -> None:
        """Offers and reports often cross; an offer long after the acceptance means that the database lost the
        report."""
        if reported.accepted_at is not None and boot_time() - reported.accepted_at > REPORT_AGAIN_AFTER:
            reported.accepted_at = None
            self._outbox.put(reported.report)


def _needs_positions(execution: Execution, reported: _Reported) -> bool:
    """The database cannot book the report because it names no position: find the positions instead of repeating it."""
    return (
        execution.investigate
        and reported.accepted_at is not None
        and lacks_positions(execution, outcome_of_report(reported.report))
    )
