"""One account of this agent while it is assigned: credentials, login, session and trading, repeated after failures."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Protocol

from agent import limits
from agent.account.session import ACCOUNT_MISMATCH, AccountSession, SeqCounter
from agent.clock import DatabaseClock
from agent.connection.account_fitness import Reach, Reason, UnfitForAccount, reading_credentials, using_platform
from agent.connection.account_state import AccountReports, StateReport
from agent.control_plane.client import Credentials, Session, login_of
from agent.control_plane.contract import ATTEMPTS_USED_UP, CLAIMED, Backbone, BackboneRefused
from agent.control_plane.retry import CallFailed, Refused, backoff
from agent.execution.engine import TradeCopyEngine
from agent.journal.journal import Journal
from agent.model import AccountId, AccountState, Assignment, Login
from agent.platforms.adapter import AccountChanged, Adapter, AdapterError, LoginRefused, NotReached
from agent.watching.watcher import Watcher

log = logging.getLogger(__name__)

Status = Literal["connecting", "connected", "degraded", "disconnected", "halted"]


class Plane(Backbone, Protocol):
    """The calls of the control plane that a connection uses."""

    async def credentials(self, account_id: AccountId, epoch: int) -> Credentials: ...

    async def open_session(self, account_id: AccountId, epoch: int, *, can_trade: bool) -> Session: ...

    async def report_account_state(self, state: StateReport) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of the agent that all connections share."""

    plane: Plane
    engine: TradeCopyEngine
    journal: Journal
    clock: DatabaseClock
    create_adapter: Callable[[str], Adapter]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    #: timeout of a login (a terminal may have to start first)
    connect_timeout: timedelta = timedelta(seconds=90)
    close_timeout: timedelta = timedelta(seconds=10)
    #: seconds before the second attempt, and the longest pause between two attempts
    first_wait: float = 0.5
    longest_wait: float = 60
    #: seconds after a refusal that only a person can fix; a changed assignment ends the pause at once
    halted_wait: float = 600
    #: seconds after a fault of this VPS that another one may not have: meanwhile the database may move the account
    unfit_wait: float = 60
    #: seconds between two requests for credentials while all login attempts are used up
    attempt_wait: float = 60
    #: time without a break that the broker must be unreachable before the account may move to another VPS
    unreachable_after: timedelta = timedelta(seconds=30)


class Halted(Exception):
    """The account must not be traded; the text tells its owner why."""


class AccountConnection:
    """Owned by the manager. `run` ends when the account is no longer assigned and is drained."""

    def __init__(
        self,
        parts: Parts,
        settings: ConnectionSettings,
        sleep: Callable[[float], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._sleep = sleep
        self._on_change = on_change
        self.wanted: Assignment | None = None
        self._changed = asyncio.Event()
        self._status: Status = "connecting"
        self._error: str | None = None
        self._unfit: Reason | None = None
        self._reach = Reach(settings.unreachable_after)
        self._session: int | None = None
        #: revision of the settings and password in use; None until they are known
        self._revision: int | None = None
        self._refusal: asyncio.Future[str] | None = None
        self._reports: AccountReports | None = None
        self._watcher: Watcher | None = None
        self._trading: AccountSession | None = None
        #: the last session that was opened; once `run` has ended it has no work in progress
        self.last_session: int | None = None
        #: the last session that has ended: statuses between two sessions name it
        self._ended_session: int | None = None
        self._was_ready = False
        #: credentials that were never sent because the server did not answer: used again without a new request, which
        #: would count as a second login attempt
        self._unused_credentials: tuple[object, Credentials] | None = None

    @property
    def connected(self) -> bool:
        return self._status == "connected"

    def want(self, assignment: Assignment | None) -> None:
        """Set the newest assignment (None: not assigned). A relevant change ends the running session; new watched
        symbols do not."""
        before, self.wanted = self.wanted, assignment
        if assignment is not None and self._reports is not None:
            self._reports.watch(
                assignment.watch_symbols, funds=assignment.watch_funds, after_fills=assignment.funds_after_fills
            )
        if _essence(before) != _essence(assignment) or self._is_outdated(before, assignment):
            self._changed.set()
        elif assignment is not None and self._trading is not None:
            # the previous agent has released the account: no need to wait for the end of its lease
            self._trading.begins_at = min(self._trading.begins_at, assignment.begins_at)

    def begin_anew(self) -> None:
        """End the running session; the next one begins at once."""
        self._changed.set()

    def _is_outdated(self, before: Assignment | None, assignment: Assignment | None) -> bool:
        """Whether settings or password have changed since the last login attempt."""
        return (
            before is not None
            and assignment is not None
            and assignment.revision not in (before.revision, self._revision)
        )

    def resync(self) -> None:
        """Report the whole account again, at the database's request."""
        if self._watcher is not None:
            self._watcher.resync()

    def status(self, account_id: AccountId) -> dict[str, object]:
        session = self._ended_session if self._session is None else self._session
        status, error, unfit = self._status, self._error, self._unfit
        if unfit is None and (unreached := self._reach.fault()) is not None:
            status, error, unfit = "disconnected", unreached, "broker_unreachable"
        if status == "connected" and self._trading is not None:
            status, error = self._trading.health()
        revision = self._revision
        if revision is None and self.wanted is not None:
            revision = self.wanted.revision
        said: dict[str, object] = {
            "account_id": account_id, "session": session, "revision": revision, "status": status,
            "error": None if error is None else limits.cut(error),
        }  # fmt: skip
        return said if unfit is None else said | {"unfit": unfit}

    # -- the life of the account -----------------------------------------------------------------------------

    async def run(self) -> None:
        waits = self._waits()
        while (assignment := self.wanted) is not None:
            self._changed.clear()
            self._was_ready = False
            pause = await self._unless_changed(self._live(assignment))
            if self._was_ready:
                waits = self._waits()
            if pause is not None:
                pause = await self._unless_changed(self._pause(pause if pause > 0 else next(waits)))
            if pause is None:  # what failed before says nothing about the new assignment
                waits = self._waits()
                self._reach.regained()
        self._unfit = None
        self._set("disconnected", None)

    def _waits(self) -> Iterator[float]:
        return backoff(self._settings.first_wait, self._settings.longest_wait)

    async def _pause(self, seconds: float) -> float:
        await self._sleep(seconds)
        return seconds

    async def _unless_changed(self, work: Coroutine[object, object, float]) -> float | None:
        """Run `work`; a change of the assignment cancels it. None if it was cancelled."""
        task = asyncio.ensure_future(work)
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({task, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return None if task.cancelled() else task.result()

    async def _live(self, assignment: Assignment) -> float:
        """Run one session, from the login to its end. Returns the seconds until the next attempt (0: the next pause of
        the backoff)."""
        hashed = _hashed(assignment)
        try:
            await self._connect_and_trade(assignment)
        except UnfitForAccount as error:
            self._unfit = error.reason
            self._lost(assignment, "disconnected", error)
            return self._settings.unfit_wait
        except (AccountChanged, Halted, LoginRefused) as error:
            self._reach.regained()
            self._set("halted", str(error))
            log.error("account_halted", extra={"account": assignment.account_id, "login": hashed, "error": str(error)})
            return self._settings.halted_wait
        except (AdapterError, TimeoutError) as error:
            self._reach.lost(str(error) or type(error).__name__)
            self._lost(assignment, "disconnected", error)
        except Refused as error:
            return self._refused_by_database(assignment, error)
        except (CallFailed, BackboneRefused) as error:
            self._reach.regained()  # no attempt is made to reach the broker while the database is unreachable
            self._lost(assignment, "degraded", error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # A bug of one adapter must not stop the other accounts.
            log.exception("account_failed", extra={"account": assignment.account_id, "login": hashed})
            self._lost(assignment, "disconnected", error)
        return 0.0

    def _refused_by_database(self, assignment: Assignment, error: Refused) -> float:
        """The database refused credentials or a session. Returns the seconds until the next attempt."""
        self._reach.regained()
        if error.code == ATTEMPTS_USED_UP:
            # unchanged text: the database recognises by it which accounts wait for an attempt
            self._lost(assignment, "disconnected", AdapterError(error.message.removeprefix(f"{ATTEMPTS_USED_UP}: ")))
            return self._settings.attempt_wait
        if error.code in CLAIMED:
            self._lost(assignment, "halted", error)
            return self._settings.halted_wait
        self._lost(assignment, "degraded", error)
        return 0.0

    def _lost(self, assignment: Assignment, status: Status, error: BaseException) -> None:
        text = str(error) or type(error).__name__
        self._set(status, text)
        log.warning(
            "account_lost",
            extra={"account": assignment.account_id, "login": _hashed(assignment), "status": status, "error": text},
        )

    def _set(self, status: Status, error: str | None) -> None:
        if (status, error) != (self._status, self._error):
            self._status, self._error = status, error
            self._on_change()
        if status != "connected":
            self._session = None

    # -- one session -----------------------------------------------------------------------------------------

    async def _connect_and_trade(self, assignment: Assignment) -> None:
        self._revision = None
        self._unfit = None
        self._set("connecting", None)
        with reading_credentials():
            credentials = await self._credentials(assignment)
        self._revision = credentials.revision
        login = login_of(assignment.account_id, assignment.platform, assignment.mode, assignment.currency, credentials)
        with using_platform():
            adapter = self._parts.create_adapter(assignment.platform)
        seq = SeqCounter()
        try:
            with using_platform():
                async with asyncio.timeout(self._settings.connect_timeout.total_seconds()):
                    state = await self._log_in(adapter, login, seq, (assignment, credentials))
            self._reach.regained()
            _verify(assignment, state)
            answer = await self._parts.plane.open_session(
                assignment.account_id, assignment.epoch, can_trade=state.trade_allowed
            )
            await self._trade(assignment, state, self._new_session(assignment, adapter, seq, answer, state.login))
        finally:
            self._ended_session = self.last_session
            await self._close(adapter)

    async def _credentials(self, assignment: Assignment) -> Credentials:
        kept, self._unused_credentials = self._unused_credentials, None
        if kept is not None and kept[0] == (_essence(assignment), assignment.revision):
            return kept[1]
        return await self._parts.plane.credentials(assignment.account_id, assignment.epoch)

    async def _log_in(
        self, adapter: Adapter, login: Login, seq: SeqCounter, used: tuple[Assignment, Credentials]
    ) -> AccountState:
        try:
            return await adapter.connect(login, seq)
        except NotReached:
            assignment, credentials = used
            self._unused_credentials = ((_essence(assignment), assignment.revision), credentials)
            raise

    def _new_session(
        self, assignment: Assignment, adapter: Adapter, seq: SeqCounter, answer: Session, login: str
    ) -> AccountSession:
        self.last_session = answer.session
        known = answer.continues is not None and self._parts.journal.knows_session(
            assignment.account_id, answer.continues
        )
        return AccountSession(
            account_id=assignment.account_id,
            epoch=assignment.epoch,
            session=answer.session,
            continues=known,
            adapter=adapter,
            begins_at=answer.begins_at,
            opened_at=self._parts.clock.now(),
            login=login,
            mode=assignment.mode,
            seq=seq,
            on_problem=self._on_change,
        )

    async def _trade(self, assignment: Assignment, state: AccountState, session: AccountSession) -> None:
        """Trade, from the first report to the end of the session; always detaches the engine at the end."""
        parts = self._parts
        reports = AccountReports(session, parts.plane, parts.clock, assignment.watch_symbols, sleep=self._sleep)
        async with asyncio.timeout(self._settings.connect_timeout.total_seconds()):
            await reports.first(state)
        newest = self.wanted or assignment  # a copy may have begun to wait for a symbol meanwhile
        reports.watch(newest.watch_symbols, funds=newest.watch_funds, after_fills=newest.funds_after_fills)
        self._reports = reports
        self._refusal = asyncio.get_running_loop().create_future()
        watcher = Watcher(
            session, parts.journal, parts.plane, parts.clock, submit=parts.engine.submit, on_refused=self._refused
        )
        try:
            await parts.engine.attach(session)
            self._watcher = watcher
            self._trading = session
            self._session = session.session
            self._set("connected", None)
            log.info(
                "account_connected",
                extra={"account": session.account_id, "login": _hashed(assignment), "session": session.session},
            )
            await self._run_all(watcher, reports)
        finally:
            self._reports = self._watcher = self._trading = self._session = None
            await parts.engine.detach(session.account_id, drain=self.wanted is None)

    async def _run_all(self, watcher: Watcher, reports: AccountReports) -> None:
        """Watch and report until one of the two ends, then raise its error."""
        watching: asyncio.Task[None] = asyncio.ensure_future(watcher.run())
        reporting: asyncio.Task[None] = asyncio.ensure_future(reports.keep())
        funds: asyncio.Task[None] = asyncio.ensure_future(reports.after_fills())
        asked: asyncio.Task[None] = asyncio.ensure_future(reports.asked())
        refused: asyncio.Task[None] = asyncio.ensure_future(self._until_refused())
        ready = asyncio.ensure_future(self._note_ready(watcher))
        try:
            await asyncio.wait([watching, reporting, funds, asked, refused], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ready, watching, reporting, funds, asked, refused):
                task.cancel()
            # With a time limit: an adapter that ignores cancellation must not delay the account's next session.
            await asyncio.wait(
                [ready, watching, reporting, funds, asked, refused],
                timeout=self._settings.close_timeout.total_seconds(),
            )
        for task in (refused, watching, reporting, funds, asked):
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
        raise AdapterError("the watcher ended")

    async def _until_refused(self) -> None:
        assert self._refusal is not None
        raise BackboneRefused(await self._refusal, "the database refused the account")

    async def _note_ready(self, watcher: Watcher) -> None:
        await watcher.ready()
        self._was_ready = True

    def _refused(self, account_id: AccountId, code: str) -> None:
        log.error("account_refused", extra={"account": account_id, "code": code})
        if self._refusal is not None and not self._refusal.done():
            self._refusal.set_result(code)

    async def _close(self, adapter: Adapter) -> None:
        with contextlib.suppress(TimeoutError):
            try:
                async with asyncio.timeout(self._settings.close_timeout.total_seconds()):
                    await adapter.close()
            except (AdapterError, OSError) as error:
                log.info("adapter_close_failed", extra={"error": f"{type(error).__name__}: {error}"})


def _essence(assignment: Assignment | None) -> object:
    """The fields of an assignment whose change ends the running session."""
    if assignment is None:
        return None
    a = assignment
    return (
        a.account_id,
        a.epoch,
        a.platform,
        a.server,
        a.login,
        a.mode,
        a.currency,
    )


def _verify(assignment: Assignment, state: AccountState) -> None:
    """Raises `Halted` unless the terminal is logged in to this account: a copy on another account cannot be undone."""
    for what, wanted, found in (("login", assignment.login, state.login), ("server", assignment.server, state.server)):
        if wanted.strip().casefold() != found.strip().casefold() and wanted:
            raise Halted(
                f"{ACCOUNT_MISMATCH}: the terminal is logged in to another account ({what} differs);"
                " check login and server, then reconnect the account"
            )


def _hashed(assignment: Assignment) -> str:
    return hashlib.sha256(f"{assignment.platform}/{assignment.server}/{assignment.login}".encode()).hexdigest()[:12]
