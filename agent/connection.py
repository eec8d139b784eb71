"""One account of this agent, from its assignment to its last word: credentials, login, session, trading, and again."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Protocol

from agent.account_reports import AccountReports, StateReport
from agent.clock import DatabaseClock
from agent.control_plane import Credentials, Session, login_of
from agent.engine import TradeCopyEngine
from agent.journal import Journal
from agent.model import AccountId, AccountState, Assignment
from agent.platforms.factory import UnknownPlatform
from agent.platforms.protocol import AccountChanged, Adapter, AdapterError, LoginRefused
from agent.retry import CallFailed, backoff
from agent.session import ACCOUNT_MISMATCH, AccountSession, Backbone, BackboneRefused, SeqCounter
from agent.watcher import Watcher

log = logging.getLogger(__name__)

Status = Literal["connecting", "connected", "degraded", "disconnected", "halted"]


class Plane(Backbone, Protocol):
    """What a connection asks of the control plane."""

    async def credentials(self, account_id: AccountId, epoch: int) -> Credentials: ...

    async def open_session(self, account_id: AccountId, epoch: int) -> Session: ...

    async def report_account_state(self, state: StateReport) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What every connection works with."""

    plane: Plane
    engine: TradeCopyEngine
    journal: Journal
    clock: DatabaseClock
    create_adapter: Callable[[str], Adapter]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    #: a login that takes longer is given up (a terminal may have to start first)
    connect_timeout: timedelta = timedelta(seconds=90)
    close_timeout: timedelta = timedelta(seconds=10)
    #: seconds before the second attempt, and the longest pause between two
    first_wait: float = 0.5
    longest_wait: float = 60
    #: the pause after a refusal that only a person can mend; a changed assignment ends it at once
    halted_wait: float = 600


class Halted(Exception):
    """This account must not be traded as it is; the text is for its owner."""


class AccountConnection:
    """Owned by the manager; `run` ends when the account is not wanted any more and is drained."""

    def __init__(
        self,
        parts: Parts,
        settings: ConnectionSettings,
        sleep: Callable[[float], Awaitable[None]],
        on_news: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._sleep = sleep
        self._on_news = on_news
        self.wanted: Assignment | None = None
        self._changed = asyncio.Event()
        self._status: Status = "connecting"
        self._error: str | None = None
        self._session: int | None = None
        self._refusal: asyncio.Future[str] | None = None
        self._reports: AccountReports | None = None
        self._watcher: Watcher | None = None
        self._trading: AccountSession | None = None
        #: the last session that was opened; once `run` has ended nothing of it is in hand
        self.last_session: int | None = None
        #: the session that a status without one is about: the last that has ended
        self._ended_session: int | None = None
        self._was_ready = False

    @property
    def connected(self) -> bool:
        return self._status == "connected"

    def want(self, assignment: Assignment | None) -> None:
        """Take the newest assignment; a change that matters ends the running session, new watched symbols do not."""
        before, self.wanted = self.wanted, assignment
        if assignment is not None and self._reports is not None:
            self._reports.watch(assignment.watch_symbols, funds=assignment.watch_funds)
        if _essence(before) != _essence(assignment):
            self._changed.set()
        elif assignment is not None and self._trading is not None:
            # the agent before has let go of the account: no need to wait for its lease
            self._trading.begins_at = min(self._trading.begins_at, assignment.begins_at)

    def resync(self) -> None:
        """The database wants to see the whole account again."""
        if self._watcher is not None:
            self._watcher.resync()

    def status(self, account_id: AccountId) -> dict[str, object]:
        session = self._ended_session if self._session is None else self._session
        status, error = self._status, self._error
        if status == "connected" and self._trading is not None:
            status, error = self._trading.health()
        return {"account_id": account_id, "session": session, "status": status, "error": error}

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
                await self._unless_changed(self._pause(pause if pause > 0 else next(waits)))
        self._set("disconnected", None)

    def _waits(self) -> Iterator[float]:
        return backoff(self._settings.first_wait, self._settings.longest_wait)

    async def _pause(self, seconds: float) -> float:
        await self._sleep(seconds)
        return seconds

    async def _unless_changed(self, work: Coroutine[object, object, float]) -> float | None:
        """Do `work`; a change of the assignment cancels it (it then winds up by itself) and gives None."""
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
        """One attempt at a session, to its end. Returns the pause before the next in seconds (0: the next of the back-off)."""
        hashed = _hashed(assignment)
        try:
            await self._connect_and_trade(assignment)
        except (AccountChanged, Halted, LoginRefused, UnknownPlatform) as error:
            self._set("halted", str(error))
            log.error("account_halted", extra={"account": assignment.account_id, "login": hashed, "error": str(error)})
            return self._settings.halted_wait
        except (AdapterError, TimeoutError) as error:
            self._lost(assignment, "disconnected", error)
        except (CallFailed, BackboneRefused) as error:
            self._lost(assignment, "degraded", error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # A bug of one adapter must not take the other accounts down with it.
            log.exception("account_failed", extra={"account": assignment.account_id, "login": hashed})
            self._lost(assignment, "disconnected", error)
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
            self._on_news()
        if status != "connected":
            self._session = None

    # -- one session -----------------------------------------------------------------------------------------

    async def _connect_and_trade(self, assignment: Assignment) -> None:
        self._set("connecting", None)
        credentials = await self._parts.plane.credentials(assignment.account_id, assignment.epoch)
        login = login_of(assignment.account_id, assignment.platform, assignment.mode, assignment.currency, credentials)
        adapter = self._parts.create_adapter(assignment.platform)
        seq = SeqCounter()
        try:
            async with asyncio.timeout(self._settings.connect_timeout.total_seconds()):
                state = await adapter.connect(login, seq)
            _verify(assignment, state)
            answer = await self._parts.plane.open_session(assignment.account_id, assignment.epoch)
            await self._trade(assignment, state, self._new_session(assignment, adapter, seq, answer, state.login))
        finally:
            self._ended_session = self.last_session
            await self._close(adapter)

    def _new_session(
        self, assignment: Assignment, adapter: Adapter, seq: SeqCounter, answer: Session, login: str
    ) -> AccountSession:
        self.last_session = answer.session
        known = answer.continues is not None and self._parts.journal.knows_session(assignment.account_id, answer.continues)
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
            on_trouble=self._on_news,
        )

    async def _trade(self, assignment: Assignment, state: AccountState, session: AccountSession) -> None:
        """From the first report to the end of the session; the engine is detached whatever happens."""
        parts = self._parts
        reports = AccountReports(session, parts.plane, parts.clock, assignment.watch_symbols, sleep=self._sleep)
        async with asyncio.timeout(self._settings.connect_timeout.total_seconds()):
            await reports.first(state)
        reports.watch(assignment.watch_symbols, funds=assignment.watch_funds)
        self._reports = reports
        self._refusal = asyncio.get_running_loop().create_future()
        watcher = Watcher(session, parts.journal, parts.plane, parts.clock, submit=parts.engine.submit, on_refused=self._refused)
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
        """Watch and report until one of them ends, then raise its reason."""
        watching: asyncio.Task[None] = asyncio.ensure_future(watcher.run())
        reporting: asyncio.Task[None] = asyncio.ensure_future(reports.keep())
        refused: asyncio.Task[None] = asyncio.ensure_future(self._until_refused())
        ready = asyncio.ensure_future(self._note_ready(watcher))
        try:
            await asyncio.wait([watching, reporting, refused], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ready, watching, reporting, refused):
                task.cancel()
            # Bounded: an adapter that takes no cancellation must not keep the account from its next session.
            await asyncio.wait([ready, watching, reporting, refused], timeout=self._settings.close_timeout.total_seconds())
        for task in (refused, watching, reporting):
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
    """What makes a running session wrong when it changes."""
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
        tuple(sorted((k, repr(v)) for k, v in a.settings.items())),
    )


def _verify(assignment: Assignment, state: AccountState) -> None:
    """The terminal must be logged in to this very account: a copy on somebody else's money cannot be taken back."""
    for what, wanted, found in (("login", assignment.login, state.login), ("server", assignment.server, state.server)):
        if wanted.strip().casefold() != found.strip().casefold() and wanted:
            raise Halted(
                f"{ACCOUNT_MISMATCH}: the terminal is logged in to another account ({what} differs);"
                " check login and server, then connect it again"
            )


def _hashed(assignment: Assignment) -> str:
    return hashlib.sha256(f"{assignment.platform}/{assignment.server}/{assignment.login}".encode()).hexdigest()[:12]
