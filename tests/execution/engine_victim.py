"""An agent that dies by kill -9 at a chosen moment of carrying out one execution (run as a child of the tests)."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from engine_harness import running_lease

from agent.account.session import AccountSession, SeqCounter
from agent.clock import DatabaseClock
from agent.control_plane.contract import QueueAnswer, ReportAnswer
from agent.execution.engine import TradeCopyEngine
from agent.journal.journal import Journal
from agent.journal.rows import EXECUTION
from agent.model import AccountId, Event, Login, Order, Report, Result
from agent.platforms.paper.adapter import PaperAdapter


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class Victim(PaperAdapter):
    def __init__(self, moment: str) -> None:
        super().__init__()
        self._moment = moment

    async def place(self, order: Order) -> Result:
        if self._moment == "journalled":
            die()
        result = await super().place(order)
        if self._moment == "sent":
            die()
        return result


class Deaf:
    """The call never reaches the database."""

    async def queue_trade_copy(self, account_id: AccountId, epoch: int, events: Sequence[Event]) -> QueueAnswer:
        raise AssertionError("no events are expected")

    async def report_executions(self, reports: Sequence[Report]) -> ReportAnswer:
        die()


async def main(moment: str, journal_path: str, login: Login, body: str) -> None:
    journal = await Journal.open(Path(journal_path))
    adapter, seq, clock = Victim(moment), SeqCounter(), DatabaseClock()
    await adapter.connect(login, seq)
    engine = TradeCopyEngine(journal, Deaf(), clock, running_lease())
    await engine.attach(
        AccountSession(
            account_id=login.account_id, epoch=1, session=1, continues=True, adapter=adapter, seq=seq,
            opened_at=clock.now(), begins_at=clock.now(),
        )
    )  # fmt: skip
    engine.submit([EXECUTION.validate_json(body)])
    await asyncio.sleep(20)


if __name__ == "__main__":
    told = json.loads(sys.stdin.read())
    fields = told["login"]
    asyncio.run(main(told["moment"], told["journal"], Login(**fields), told["execution"]))
