"""`Reporter`: brings outcomes to the database; what gathers while a call is under way goes with the next one."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from agent.batch import BatchSize
from agent.journal import Journal, JournalError
from agent.model import ExecutionId, Report
from agent.session import MALFORMED, Backbone, BackboneCutOff, BackboneRefused, Submit

log = logging.getLogger(__name__)

#: seconds until a refused or failed call is tried again
RETRY_AFTER = 5.0


class Reporter:
    def __init__(
        self,
        journal: Journal,
        backbone: Backbone,
        *,
        submit: Submit,
        accepted: Callable[[Report], None],
        batch: int,
        retry_after: float = RETRY_AFTER,
    ) -> None:
        """`accepted` is told of every report that needs no more telling (accepted, a duplicate, or refused for good)."""
        self._journal = journal
        self._backbone = backbone
        self._submit = submit
        self._accepted = accepted
        self._size = BatchSize(batch)
        self._retry_after = retry_after
        self._waiting: dict[tuple[ExecutionId, int], Report] = {}
        self._sending = 0
        self._new = asyncio.Event()

    @property
    def pending(self) -> int:
        return len(self._waiting) + self._sending

    def put(self, report: Report) -> None:
        """A later report of the same attempt replaces one that is still waiting (an `unknown` by what it came to)."""
        key = (report.execution_id, report.attempt)
        self._waiting.pop(key, None)
        self._waiting[key] = report
        self._new.set()

    async def run(self) -> None:
        """Deliver for ever; begins with what an earlier run of the agent could not deliver."""
        try:
            for report in await self._journal.undelivered_reports():
                self._waiting.setdefault((report.execution_id, report.attempt), report)
        except JournalError as error:
            log.error("reports_not_recovered", extra={"error": str(error)})
        while True:
            if not self._waiting:
                self._new.clear()
                await self._new.wait()
            keys = list(self._waiting)[: self._size.limit]
            batch = [self._waiting.pop(key) for key in keys]
            self._sending = len(batch)
            try:
                await self._deliver(batch)
            except BackboneRefused as refused:
                log.error("reports_refused", extra={"code": refused.code, "count": len(batch)})
                await self._put_back(batch)
            except Exception:
                log.exception("reports_failed", extra={"count": len(batch)})
                await self._put_back(batch)
            finally:
                self._sending = 0

    async def _deliver(self, batch: Sequence[Report]) -> None:
        try:
            answer = await self._backbone.report_executions(batch)
        except BackboneRefused as refused:
            if refused.code not in MALFORMED:
                raise
            if len(batch) == 1:
                log.error("report_refused", extra={"execution_id": batch[0].execution_id, "code": refused.code})
                self._done(batch)
                return
            await self._in_halves(batch)  # one of them poisons the call
            return
        except BackboneCutOff as slow:
            log.warning("reports_cut_off", extra={"count": len(batch), "error": str(slow)})
            self._size.cut_off(len(batch))
            await self._in_halves(batch)
            return
        self._size.went_well()
        for result in answer.results:
            if result.status in ("refused", "kept"):
                log.error(
                    "report_refused" if result.status == "refused" else "report_kept",
                    extra={"execution_id": result.execution_id, "code": result.code, "error": result.error},
                )
        self._done(batch)
        self._submit(answer.executions)

    async def _in_halves(self, batch: Sequence[Report]) -> None:
        middle = len(batch) // 2
        await self._deliver(batch[:middle])
        await self._deliver(batch[middle:])

    def _done(self, reports: Sequence[Report]) -> None:
        self._journal.reported(reports)
        for report in reports:
            self._accepted(report)

    async def _put_back(self, batch: Sequence[Report]) -> None:
        for report in batch:
            self._waiting.setdefault((report.execution_id, report.attempt), report)
        self._sending = 0
        await asyncio.sleep(self._retry_after)
