"""The agents' requests in `bench queue`: a master's events, and reports of its followers' fills.

Standard library only (see `turns`).
"""

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

SESSION = 1
PRICE = "1.10000"
#: set for the whole session, because a connection acts for one agent; {} is the driver's parameter placeholder
CLAIMS = "select set_config('request.jwt.claims', {}, false)"
PLAN = "select public.queue_trade_copy({}::jsonb) as answer"
REPORT = "select public.report_executions({}::jsonb) as answer"


class Copies:
    """A master that alternately opens and closes a position, and followers whose orders are always filled.

    `master`: id of its account. Requests are those of docs/protocol.md.
    """

    def __init__(self, master: str) -> None:
        self._master = master
        self._numbers = itertools.count(1)
        self._tickets = itertools.count(1)
        self._ticket: str | None = None

    def event(self) -> dict[str, Any]:
        """The next request to `queue_trade_copy`, with one event."""
        now = datetime.now(UTC).isoformat()
        opens = self._ticket is None
        ticket = self._ticket or f"m{next(self._tickets)}"
        self._ticket = ticket if opens else None
        event = {
            "session": SESSION, "seq": next(self._numbers), "type": "opened" if opens else "closed", "evidence": "deal",
            "detected_at": now, "unchanged_at": now, "position": position_report(ticket, "0.10" if opens else "0"),
        }  # fmt: skip
        return {"account_id": self._master, "epoch": 1, "events": [event]}

    def reports(self, executions: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The request to `report_executions` that reports every execution as filled."""
        return {"reports": [self._report(execution) for execution in executions]}

    def _report(self, execution: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat()
        opens = execution["action"] == "open"
        ticket = f"f{next(self._tickets)}" if opens else execution["ticket"]
        return {
            "account_id": execution["account_id"], "session": SESSION, "seq": next(self._numbers),
            "execution_id": execution["id"], "attempt": execution["attempt"], "outcome": "completed", "reason": None,
            "retryable": False, "message": "", "adopted": False, "filled_lots": execution["lots"], "price": PRICE,
            "positions": [position_report(ticket, execution["lots"] if opens else "0", tag=execution["id"])],
            "received_at": now, "sent_at": now, "done_at": now,
        }  # fmt: skip


def claims_of(lane: dict[str, Any]) -> str:
    """The claims of the agent of a lane whose followers are on their master's VPS."""
    return json.dumps({"sub": lane["agent"], "role": "authenticated"})


def accepted(answer: dict[str, Any]) -> int:
    """The number of reports that `report_executions` accepted."""
    return sum(1 for result in answer["results"] if result["status"] == "accepted")


def position_report(ticket: str, lots: str, tag: str | None = None) -> dict[str, Any]:
    return {
        "ticket": ticket, "kind": "position", "symbol": "EURUSD", "side": "buy", "lots": lots, "price": PRICE,
        "sl": None,
        "tp": None, "order_type": None, "magic": "0", "comment": "", "opened_at": None, "expires_at": None, "tag": tag,
        "replaces": None,
    }  # fmt: skip
