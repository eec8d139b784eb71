"""`Owners`: keeps the calls of one owner from delaying those of another.

Accounts of different owners never share a call. Each owner has at most `AT_ONCE` calls in flight, the most urgent
first. An owner whose calls time out twice in a row is slow: one call in flight, with one account in it, until
`WELL_AFTER` calls in a row were answered.
"""

import asyncio
import contextlib
import heapq
import itertools
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Final

from agent.model import AccountId, Assignment

log = logging.getLogger(__name__)

#: calls of one owner in flight at a time
AT_ONCE: Final = 4
#: timeouts in a row that make an owner slow, and answers in a row that end it
SLOW_AFTER: Final = 2
WELL_AFTER: Final = 5

#: ranks of calls: an owner's calls with a lower rank go first
TRADES: Final = 0
SESSIONS: Final = 1
STATES: Final = 2


@dataclass(slots=True, eq=False)
class _Owner:
    slow: bool = False
    timed_out: int = 0
    went_well: int = 0
    busy: int = 0
    waiting: list[tuple[int, int, "asyncio.Future[None]"]] = field(default_factory=list)

    def admit(self) -> None:
        """Start waiting calls, up to the limit of calls in flight."""
        while self.waiting and self.busy < (1 if self.slow else AT_ONCE):
            _, _, turn = heapq.heappop(self.waiting)
            if not turn.done():  # skip cancelled calls
                self.busy += 1
                turn.set_result(None)


class Owners:
    """The owner of each account, and the state of each owner's calls."""

    def __init__(self) -> None:
        self._owner_of: dict[AccountId, str] = {}
        self._owners: dict[str, _Owner] = {}
        self._numbers = itertools.count()

    def learn(self, assignments: Iterable[Assignment]) -> None:
        """Learn owners from assignments. Accounts that are no longer assigned stay known: reports may follow."""
        for assignment in assignments:
            if assignment.owner:
                self._owner_of[assignment.account_id] = assignment.owner

    def of(self, account_id: AccountId) -> str:
        """The account's owner; an account without a known owner counts as an owner of its own."""
        return self._owner_of.get(account_id, account_id)

    def slow(self, account_id: AccountId) -> bool:
        """Whether the account's owner is slow: its calls carry one account each."""
        owner = self._owners.get(self.of(account_id))
        return owner is not None and owner.slow

    @contextlib.asynccontextmanager
    async def turn(self, account_id: AccountId, rank: int) -> AsyncIterator[None]:
        """Wait until a call of this account's owner may start; lower ranks go first."""
        owner = self._owners.setdefault(self.of(account_id), _Owner())
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(owner.waiting, (rank, next(self._numbers), turn))
        owner.admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                owner.busy -= 1
            turn.cancel()
            owner.admit()

    def timed_out(self, account_id: AccountId) -> None:
        """A call got no answer in time, or the database cancelled it."""
        owner = self._owners.setdefault(self.of(account_id), _Owner())
        owner.timed_out, owner.went_well = owner.timed_out + 1, 0
        if owner.timed_out >= SLOW_AFTER and not owner.slow:
            owner.slow = True
            log.warning("owner_slow", extra={"owner": self.of(account_id), "timed_out": owner.timed_out})

    def went_well(self, account_id: AccountId) -> None:
        """A call was answered."""
        owner = self._owners.setdefault(self.of(account_id), _Owner())
        owner.timed_out, owner.went_well = 0, owner.went_well + 1
        if owner.slow and owner.went_well >= WELL_AFTER:
            owner.slow = False
            log.info("owner_well", extra={"owner": self.of(account_id)})
            owner.admit()
