"""What a step has left open, for a close that names a step instead of a ticket."""

import asyncio
from datetime import timedelta

from agent.account.session import AccountSession
from agent.execution.lanes import ENDING
from agent.execution.orders import NEEDS_TICKET, orders_of, still_open
from agent.execution.outcome import Outcome
from agent.journal.journal import Journal, JournalError
from agent.model import Execution, Order, Position
from agent.platforms.adapter import AdapterError


class StepRemainder:
    def __init__(self, session: AccountSession, journal: Journal, read_timeout: timedelta) -> None:
        self._session = session
        self._journal = journal
        self._read_timeout = read_timeout.total_seconds()

    async def orders(self, execution: Execution) -> list[Order] | Outcome:
        """The orders that an execution needs now, or its outcome when none is needed or possible."""
        left: list[Position] = []
        if execution.action in NEEDS_TICKET and execution.ticket is None:
            if execution.action not in ENDING or execution.after_id is None:
                return Outcome(status="rejected", reason="no_ticket", message="it names neither a ticket nor a step")
            try:
                async with asyncio.timeout(self._read_timeout):
                    left = await self._of_step(execution.after_id)
            except (AdapterError, TimeoutError, JournalError) as error:
                return Outcome(status="rejected", reason="account_unreadable", retryable=True, message=str(error))
        return orders_of(execution, self._session.book, left, self._session.mode)

    async def _of_step(self, step_id: str) -> list[Position]:
        """Open positions of a step, from the journal. If the journal lacks an execution of the step (another agent may
        have sent it) or the outcome of one, they are read from the account by their tags."""
        entries = await self._journal.step(self._session.account_id, step_id)
        reports = [entry.report for entry in entries if entry.report is not None]
        if entries and len(reports) == len(entries):
            return still_open([report.positions for report in reports], self._session.book)
        tags = {step_id, *(str(entry.execution_id) for entry in entries)}
        read = await self._session.adapter.orders()
        read += await self._session.adapter.positions()
        return [position for position in read if position.tag is not None and str(position.tag) in tags]
