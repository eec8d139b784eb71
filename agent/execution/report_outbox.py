"""`ReportOutbox`: brings reports of executions to the database.

Each owner has a queue of its own, so that one owner's calls never delay another's.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from agent.control_plane.contract import Backbone, BackboneRefused, ReportAnswer, Submit
from agent.control_plane.delivery import Delivery
from agent.control_plane.owners import Owners
from agent.journal.journal import Journal, JournalError
from agent.model import AccountId, ExecutionId, Report

log = logging.getLogger(__name__)

#: seconds until a refused or failed call is repeated
RETRY_AFTER = 5.0

#: execution and attempt that a report is about
ReportKey = tuple[ExecutionId, int]


class ReportOutbox:
    def __init__(
        self,
        journal: Journal,
        backbone: Backbone,
        *,
        owners: Owners,
        submit: Submit,
        accepted: Callable[[Report], None],
        batch: int,
        retry_after: float = RETRY_AFTER,
    ) -> None:
        """`accepted` is called for every report that need not be sent again: accepted, a duplicate, or refused for
        good. `batch`: most reports per call."""
        self._journal = journal
        self._backbone = backbone
        self._owners = owners
        self._submit = submit
        self._accepted = accepted
        self._batch = batch
        self._retry_after = retry_after
        self._queues: dict[str, _OwnerQueue] = {}
        #: the queue that an account's reports are in: they stay in order when the account's owner becomes known
        self._queue_of: dict[AccountId, _OwnerQueue] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def pending(self) -> int:
        """How many reports have no answer yet."""
        return sum(queue.delivery.pending for queue in self._queues.values())

    def put(self, report: Report) -> None:
        """Queue a report. It replaces a waiting report of the same attempt (the outcome replaces `unknown`)."""
        queue = self._queue_of.get(report.account_id)
        if queue is None or queue.delivery.pending == 0:
            owner = self._owners.of(report.account_id)
            queue = self._queues.get(owner)
            if queue is None:
                queue = self._queues[owner] = _OwnerQueue(self, self._batch)
            self._queue_of[report.account_id] = queue
        queue.delivery.put(report)
        self._start(queue)

    async def run(self) -> None:
        """Deliver until cancelled. Begins with what an earlier run of the agent could not deliver."""
        try:
            recovered = await self._journal.undelivered_reports()
        except JournalError as error:
            log.error("reports_not_recovered", extra={"error": str(error)})
        else:
            for report in recovered:
                queue = self._queue_of.get(report.account_id)
                if queue is None or queue.delivery.get(queue.key(report)) is None:
                    self.put(report)
        async with asyncio.TaskGroup() as group:
            self._group = group
            for queue in self._queues.values():
                self._start(queue)
            await asyncio.Event().wait()

    def _start(self, queue: "_OwnerQueue") -> None:
        if self._group is not None and not queue.running:
            queue.running = True
            self._group.create_task(queue.run(), name="reports")

    async def call(self, batch: Sequence[Report]) -> ReportAnswer:
        return await self._backbone.report_executions(batch)

    def answered(self, batch: Sequence[Report], answer: ReportAnswer) -> None:
        for result in answer.results:
            if result.status in ("refused", "kept"):
                log.error(
                    "report_refused" if result.status == "refused" else "report_kept",
                    extra={"execution_id": result.execution_id, "code": result.code, "error": result.error},
                )
        self.done(batch)
        self._submit(answer.executions)

    def done(self, reports: Sequence[Report]) -> None:
        """These reports need not be sent again."""
        self._journal.reported(reports)
        for report in reports:
            self._accepted(report)

    def keep_refused(self, report: Report, error: BackboneRefused) -> None:
        self._journal.keep_refused(report, str(error))

    @property
    def retry_after(self) -> float:
        return self._retry_after

    def alone(self, account_id: AccountId) -> bool:
        """Whether a call carries only this account's reports, because its owner's calls are slow."""
        return self._owners.slow(account_id)


class _OwnerQueue:
    """The reports of one owner; the `Route` of their `Delivery`."""

    name: Final = "reports"
    in_order: Final = False

    def __init__(self, outbox: ReportOutbox, largest_batch: int) -> None:
        self._outbox = outbox
        self.delivery = Delivery[Report, ReportAnswer](self, largest_batch)
        self.running = False

    async def run(self) -> None:
        """Deliver until nothing waits."""
        try:
            await self.delivery.run()
        finally:
            self.running = False

    def key(self, report: Report) -> ReportKey:
        return (report.execution_id, report.attempt)

    def select(self, waiting: Iterable[Report], limit: int) -> list[Report]:
        candidates = list(waiting)
        first = candidates[0].account_id
        if self._outbox.alone(first):
            candidates = [report for report in candidates if report.account_id == first]
        return candidates[:limit]

    async def call(self, batch: Sequence[Report]) -> ReportAnswer:
        return await self._outbox.call(batch)

    async def accepted(self, batch: Sequence[Report], answer: ReportAnswer) -> None:
        self._outbox.answered(batch, answer)

    def refused(self, report: Report, error: BackboneRefused) -> None:
        log.error("report_refused", extra={"execution_id": report.execution_id, "code": error.code})
        self._outbox.keep_refused(report, error)
        bare = _without_texts(report)
        if bare == report:
            self._outbox.done([report])
        else:  # what was filled counts, whatever the broker wrote beside it
            self.delivery.put_first([bare])

    def failed(self, batch: Sequence[Report], error: Exception) -> float:
        if isinstance(error, BackboneRefused):
            log.error("reports_refused", extra={"code": error.code, "count": len(batch)})
        else:
            log.error("reports_failed", exc_info=error, extra={"count": len(batch)})
        return self._outbox.retry_after


def _without_texts(report: Report) -> Report:
    """The same report without what a person or a broker wrote."""
    return replace(report, message="", positions=tuple(replace(position, comment="") for position in report.positions))
