"""An order that the practice broker did not answer is unknown, not failed: nobody is told to try again."""

from typing import cast

import pytest

from agent.failure import Failure
from agent.paper.client import PaperClient, PaperLost
from agent.paper.records import Request
from agent.practice.desk import UNKNOWN, Desk, PracticeAccount
from agent.testbed.supabase_client import Backend

MASTER = PracticeAccount(account_id="1", name="master", login="master", status="connected", status_reason=None)


class Silent:
    """Loses the connection after the order was sent."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def submit(self, login: str, request: Request) -> None:
        raise self._error


@pytest.mark.parametrize("error", [PaperLost("the connection was closed"), TimeoutError()])
async def test_whether_the_order_was_executed_is_not_known(error: Exception) -> None:
    desk = Desk(cast(Backend, None), "", cast(PaperClient, Silent(error)))
    with pytest.raises(Failure) as refused:
        await desk.order(MASTER, Request(kind="close", ticket="1"))
    assert refused.value.code == UNKNOWN
    assert "not known whether the order of master was executed" in str(refused.value)
    assert "paper account list" in (refused.value.fix or "")
    assert "try again" not in str(refused.value)
