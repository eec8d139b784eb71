"""Whether an order may be sent now, and the deadline passed to the adapter."""

from datetime import UTC, datetime, timedelta

from agent.account.session import AccountSession
from agent.clock import DatabaseClock, Lease, boot_time
from agent.execution.lanes import Work
from agent.execution.outcome import Outcome, cancelled, expired


class SendGate:
    """One per session; after `shut` nothing of the session may be sent any more."""

    def __init__(self, session: AccountSession, clock: DatabaseClock, lease: Lease) -> None:
        self._session = session
        self._clock = clock
        self._lease = lease
        self._shut = False

    def shut(self) -> None:
        self._shut = True

    def why_not(self, work: Work) -> Outcome | None:
        """None: it may be sent now. Call it right before sending; no await may come between the two."""
        execution, now = work.execution, self._clock.now()
        if self._shut:
            return expired("not_connected", "the session has ended")
        if work.dropped is not None and not work.unknown:
            return cancelled(work.dropped)
        if execution.epoch != self._session.epoch:
            return expired(
                "stale_epoch", f"its epoch is {execution.epoch}, this agent works epoch {self._session.epoch}"
            )
        if now >= execution.send_before or boot_time() >= work.deadline:
            return expired("too_late")
        if self._lease.remaining() <= 0:
            return expired("lease_over")
        if now < self._session.begins_at:
            return expired("before_begin", "an earlier agent of this account may still be trading")
        return None

    def send_before(self, work: Work) -> datetime:
        """The order's deadline on this machine's wall clock, the only clock that agent, worker process and expert
        advisor share."""
        left = (work.execution.send_before - self._clock.now()).total_seconds()
        left = min(left, work.deadline - boot_time(), self._lease.remaining())
        return datetime.now(UTC) + timedelta(seconds=left)
