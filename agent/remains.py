"""What a step has left open: the aim of a close that names a step instead of a ticket."""

import asyncio
from datetime import timedelta

from agent.journal import Journal, JournalError
from agent.lanes import ENDING
from agent.model import Execution, Order, Position
from agent.orders import NEEDS_TICKET, Ending, left_behind, orders_of
from agent.platforms.protocol import AdapterError
from agent.session import AccountSession


class Remains:
    def __init__(self, session: AccountSession, journal: Journal, read_timeout: timedelta) -> None:
        self._session = session
        self._journal = journal
        self._read_timeout = read_timeout.total_seconds()

    async def orders(self, execution: Execution) -> list[Order] | Ending:
        """The orders of an execution as things stand now, or the ending that makes them needless or impossible."""
        left: list[Position] = []
        if execution.action in NEEDS_TICKET and execution.ticket is None:
            if execution.action not in ENDING or execution.after_id is None:
                return Ending(outcome="rejected", reason="no_ticket", message="it names neither a ticket nor a step")
            try:
                async with asyncio.timeout(self._read_timeout):
                    left = await self._of_step(execution.after_id)
            except (AdapterError, TimeoutError, JournalError) as error:
                return Ending(outcome="rejected", reason="account_unreadable", retryable=True, message=str(error))
        return orders_of(execution, self._session.book, left, self._session.mode)

    async def _of_step(self, step_id: str) -> list[Position]:
        """As this journal tells. If it does not know all executions of the step (another agent may have sent them) or the
        end of one of them, the account is asked by their tags."""
        entries = await self._journal.step(self._session.account_id, step_id)
        reports = [entry.report for entry in entries if entry.report is not None]
        if entries and len(reports) == len(entries):
            return left_behind([report.positions for report in reports], self._session.book)
        tags = {step_id, *(str(entry.execution.id) for entry in entries)}
        read = await self._session.adapter.orders()
        read += await self._session.adapter.positions()
        return [position for position in read if position.tag is not None and str(position.tag) in tags]
