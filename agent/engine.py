"""`TradeCopyEngine`: executions → lanes → orders → reports. The only part of the agent that sends orders.

An execution is known by (id, attempt) and is sent at most once, journalled before. What cannot be known is reported
`unknown` and looked for; it is never sent again on a guess (DESIGN §4.5).
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from agent.clock import DatabaseClock, Lease, boot_time
from agent.journal import Journal
from agent.lanes import Work
from agent.model import AccountId, Execution, ExecutionId, Offered, Report, Unreadable
from agent.orders import ending_told, shows_nothing
from agent.reporter import Reporter
from agent.session import AccountSession, Backbone
from agent.trader import AccountTrader, EngineSettings

__all__ = ["EngineSettings", "TradeCopyEngine"]

log = logging.getLogger(__name__)

Key = tuple[ExecutionId, int]

#: outcomes kept in memory; older ones are in the journal
REMEMBERED_OUTCOMES = 5_000
REMEMBERED_CANCELS = 5_000
#: an attempt that the database still offers so long after it accepted the report is told again
TELL_AGAIN_AFTER = 3.0


@dataclass(slots=True)
class _Told:
    report: Report
    #: boot time of the database's acceptance; None while it is on its way
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
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._lease = lease
        self._settings = settings or EngineSettings()
        self._traders: dict[AccountId, AccountTrader] = {}
        self._attaching: dict[AccountId, asyncio.Lock] = {}
        self._draining: set[AccountId] = set()
        #: not ended, by attempt
        self._open: dict[Key, Work] = {}
        #: offered before their account was attached (or for an epoch that it has not reached)
        self._early: dict[Key, Work] = {}
        self._told: OrderedDict[Key, _Told] = OrderedDict()
        self._cancelled: OrderedDict[ExecutionId, None] = OrderedDict()
        self._reporter = Reporter(
            journal, backbone, submit=self.submit, accepted=self._accepted, batch=self._settings.report_batch
        )
        self._reporting = asyncio.create_task(self._reporter.run(), name="reporter")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def attach(self, session: AccountSession) -> None:
        """Start the trading of an account, or go on with it in a new session. What the journal left open is looked for first.

        Raises `JournalError` when the session cannot be written down: then the account is not traded.
        """
        account_id = session.account_id
        async with self._lock(account_id):
            await self._detach(account_id, drain=False)
            vouches_from = self._vouches_from(session)
            await self._journal.remember_session(account_id, session.session, vouches_from)
            unresolved = await self._journal.unresolved(account_id)
            trader = AccountTrader(
                session, self._journal, self._clock, self._lease, self._settings, self._heard, vouches_from=vouches_from
            )
            works = [self._work(execution, unknown=True) for execution in unresolved]
            for key in [work.key for work in works]:
                self._early.pop(key, None)
            early = [work for work in self._early.values() if self._is_for(work.execution, session)]
            for work in early:
                del self._early[work.key]
            works += [work for work in early if boot_time() < work.deadline]
            self._open.update((work.key, work) for work in works)
            self._traders[account_id] = trader
            trader.add(works)
            self._cancel_known(trader, works)

    async def detach(self, account_id: AccountId, *, drain: bool) -> None:
        """Stop trading an account. `drain`: let what is queued finish first. What was sent is then reported unknown, what
        was not is forgotten (the database offers it again). Accounts that are not attached are ignored."""
        async with self._lock(account_id):
            await self._detach(account_id, drain=drain)

    def submit(self, executions: Iterable[Offered]) -> None:
        """Take executions from any source, in any order, any number of times. Never blocks."""
        fresh: dict[AccountId, list[Work]] = {}
        for execution in executions:
            key = (execution.id, execution.attempt)
            if isinstance(execution, Unreadable):
                self._refuse(execution)
                continue
            if key in self._open or key in self._early:
                continue
            trader = self._traders.get(execution.account_id)
            if (told := self._told.get(key)) is not None:
                if trader is None or not _asked_to_show(execution, told):
                    self._tell_again(told)
                    continue
                del self._told[key]
            work = self._work(execution)
            if trader is None or execution.account_id in self._draining or execution.epoch > trader.session.epoch:
                self._keep_early(work)
            else:
                self._open[key] = work
                fresh.setdefault(execution.account_id, []).append(work)
        for account_id, works in fresh.items():
            trader = self._traders[account_id]
            trader.add(works)
            self._cancel_known(trader, works)

    def cancel(self, ids: Iterable[ExecutionId]) -> None:
        """The database asks to drop these if they are unsent, here or still on their way; each one dropped is reported."""
        for execution_id in ids:
            self._cancelled[execution_id] = None
            self._cancelled.move_to_end(execution_id)
            accounts = {work.execution.account_id for key, work in self._open.items() if key[0] == execution_id}
            for account_id in accounts:
                self._traders[account_id].cancel(execution_id)
        while len(self._cancelled) > REMEMBERED_CANCELS:
            self._cancelled.popitem(last=False)

    @property
    def in_flight(self) -> int:
        """Executions not ended plus reports not accepted: above 0, the agent asks for what is outstanding every second."""
        return len(self._open) + self._reporter.pending

    async def close(self) -> None:
        """Detach everything without draining, then stop reporting. Reports that are not accepted stay in the journal."""
        for account_id in list(self._traders):
            await self.detach(account_id, drain=False)
        self._reporting.cancel()
        await asyncio.gather(self._reporting, return_exceptions=True)

    # -- inside ----------------------------------------------------------------------------------------------

    def _lock(self, account_id: AccountId) -> asyncio.Lock:
        return self._attaching.setdefault(account_id, asyncio.Lock())

    async def _detach(self, account_id: AccountId, *, drain: bool) -> None:
        trader = self._traders.get(account_id)
        if trader is None:
            return
        if drain:
            self._draining.add(account_id)
            try:
                async with asyncio.timeout(self._settings.drain_timeout.total_seconds()):
                    await trader.drain()
            except TimeoutError:
                log.warning("drain_timed_out", extra={"account_id": account_id})
            finally:
                self._draining.discard(account_id)
        del self._traders[account_id]
        await trader.stop()
        for key in [key for key, work in self._open.items() if work.execution.account_id == account_id]:
            del self._open[key]

    def _vouches_from(self, session: AccountSession) -> datetime:
        """What was queued before this moment and is not in the journal may have been sent by somebody else."""
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
        """Nothing is lost by forgetting one of these: until it is reported the database offers it again."""
        now = boot_time()
        for key in [key for key, early in self._early.items() if early.deadline <= now]:
            del self._early[key]
        if work.deadline > now:
            self._early[work.key] = work

    def _cancel_known(self, trader: AccountTrader, works: Iterable[Work]) -> None:
        for work in works:
            if work.execution.id in self._cancelled and work.stage != "ended":
                trader.cancel(work.execution.id)

    def _heard(self, work: Work, report: Report, ended: bool) -> None:
        """A trader has an outcome. It is written down and on its way before anything else happens to the attempt."""
        if report.outcome != "unknown":
            self._journal.answered(work.execution, report)
        if ended:
            self._open.pop(work.key, None)
            if report.outcome != "unknown":
                self._told[work.key] = _Told(report)
                while len(self._told) > REMEMBERED_OUTCOMES:
                    self._told.popitem(last=False)
        self._reporter.put(report)

    def _refuse(self, offered: Unreadable) -> None:
        """Nothing was sent and nothing will be: the database hears it once, and again if it goes on asking."""
        key = (offered.id, offered.attempt)
        if (told := self._told.get(key)) is not None:
            self._tell_again(told)
            return
        log.error("execution_unreadable", extra={"execution_id": offered.id, "error": offered.why})
        trader = self._traders.get(offered.account_id)
        report = Report(
            account_id=offered.account_id,
            session=0 if trader is None else trader.session.session,
            seq=0 if trader is None else trader.session.take_seq(),
            execution_id=offered.id,
            attempt=offered.attempt,
            outcome="rejected",
            reason="unreadable_order",
            message=f"this agent cannot read the order: {offered.why}"[:500],
        )
        self._told[key] = _Told(report)
        self._reporter.put(report)

    def _accepted(self, report: Report) -> None:
        told = self._told.get((report.execution_id, report.attempt))
        if told is not None and report.outcome != "unknown":
            told.accepted_at = boot_time()

    def _tell_again(self, told: _Told) -> None:
        """Offers cross with reports all the time; one that comes long after means that the database lost the report."""
        if told.accepted_at is not None and boot_time() - told.accepted_at > TELL_AGAIN_AFTER:
            told.accepted_at = None
            self._reporter.put(told.report)


def _asked_to_show(execution: Execution, told: _Told) -> bool:
    """The database cannot book what it was told, for that names no position: look for it instead of repeating it."""
    return execution.investigate and told.accepted_at is not None and shows_nothing(execution, ending_told(told.report))
