"""What engine and watcher need of the control plane: the two calls that carry trades, their answers and refusals.

`Backbone` is implemented by the control plane's client and, in tests, by a fake database.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agent.model import AccountId, Event, ExecutionId, Offered, Report

EventStatus = Literal["accepted", "duplicate", "history", "refused", "kept"]
ReportStatus = Literal["accepted", "duplicate", "refused", "kept"]

#: all attempts at a login that has never succeeded are used up for now
ATTEMPTS_USED_UP = "TC224"
#: another user has proved to own the account
CLAIMED = frozenset({"TC202", "TC225", "TC226"})
#: refusals that concern the whole account: this agent must stop working it (docs/protocol.md)
ACCOUNT_REFUSALS = frozenset({"TC101", "TC102", "TC103", "TC208"})
#: the lease is over, for example after an outage of the database: after the next heartbeat the same call succeeds
LEASE_OVER = "TC104"
#: refusals of the content of a call, not of its caller: malformed, or too large
_MALFORMED = frozenset({"TC001", "TC002", "HTTP 413", "413"})
#: classes of SQLSTATE that say the same: 22 a value that no column takes, 23 a constraint
_MALFORMED_CLASSES = ("22", "23")


def concerns_entry(code: str | None) -> bool:
    """Whether a refusal is about an entry of the call: without that entry the same call succeeds.

    Any other code counts as about the caller, and so does one that is not known.
    """
    if code is None:
        return False
    return code in _MALFORMED or (len(code) == 5 and code.startswith(_MALFORMED_CLASSES))


class BackboneRefused(Exception):
    """The database refused a whole call for good; repeating it unchanged is useless.

    `code` is a code of docs/errors.md. Lost connections and busy databases do not raise this: the call is retried.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message

    @property
    def concerns_account(self) -> bool:
        """Whether the account, the session or the whole agent is no longer accepted: the session must stop."""
        return self.code in ACCOUNT_REFUSALS


class BackboneCutOff(Exception):
    """The database cancelled a call of several items at its statement timeout: nothing was done, send fewer items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventResult:
    """The result for one event. `refused` comes with a code; `history`: stored, not applied; `kept`: the database
    failed on it, has set it aside and retries it by itself."""

    event_key: str
    status: EventStatus
    code: str | None = None
    error: str | None = None
    #: for a snapshot: tickets that are open in the database but missing in it; a second complete snapshot closes them
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResult:
    """The result for one report. `kept`: the database failed on it, has set it aside and retries it by itself."""

    execution_id: ExecutionId
    status: ReportStatus
    code: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueAnswer:
    """Answer of `queue_trade_copy`: one result per event, in order, and executions for this VPS."""

    results: tuple[EventResult, ...]
    executions: tuple[Offered, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportAnswer:
    """Answer of `report_executions`: one result per report, in order, and executions for this VPS."""

    results: tuple[ReportResult, ...]
    executions: tuple[Offered, ...] = ()


class Backbone(Protocol):
    """The two calls that carry trades. Both retry until delivered, or raise `BackboneRefused`, or `BackboneCutOff` for
    more than one item. They may be cancelled."""

    async def queue_trade_copy(self, account_id: AccountId, epoch: int, events: Sequence[Event]) -> QueueAnswer: ...

    async def report_executions(self, reports: Sequence[Report]) -> ReportAnswer: ...


#: passes executions to the engine; never blocks, duplicates are harmless
Submit = Callable[[Iterable[Offered]], None]
#: called once with account and code when the database refuses the account: the session must stop
OnRefused = Callable[[AccountId, str], None]
