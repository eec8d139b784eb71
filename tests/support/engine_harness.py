"""A broker and a database, both in memory, for tests of engine and watcher.

`Desk` is the broker (it outlives connections), `DeskAdapter` one connection to it; faults are scripted per order and
per read. `FakeDatabase` implements the `Backbone` protocol and keeps what it received.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

from agent.account.session import AccountSession, SeqCounter
from agent.clock import DatabaseClock, Lease, boot_time
from agent.control_plane.contract import (
    BackboneCutOff,
    BackboneRefused,
    EventResult,
    QueueAnswer,
    ReportAnswer,
    ReportResult,
)
from agent.model import (
    AccountId,
    AccountState,
    Change,
    Changed,
    Event,
    Evidence,
    Execution,
    ExecutionId,
    Found,
    Login,
    Mode,
    NotFound,
    Order,
    Placed,
    Position,
    Quote,
    Rejected,
    Report,
    Result,
    Resync,
    SymbolSpec,
    Ticket,
    Unknown,
)
from agent.platforms.adapter import AdapterError, Capabilities
from agent.platforms.rate_limit import RateLimit

ACCOUNT = AccountId("00000000-0000-4000-8000-000000000001")
#: reject: refused · lost: no answer, not executed · executed: no answer, executed · hang: executed, never answered ·
#: slow: the order reaches the broker after its deadline · deaf: the adapter ignores cancellation until its gate opens ·
#: bare: executed, but the answer names no position
Fault = Literal["reject", "lost", "executed", "hang", "slow", "deaf", "bare"]
ReadFault = Literal["empty", "error", "stale"]


async def eventually(predicate: Callable[[], object], *, seconds: float = 10) -> None:
    """Wait for a condition over several objects, for which there is no single event."""
    async with asyncio.timeout(seconds):
        while not predicate():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def position(ticket: str, *, lots: str = "1.00", **changes: object) -> Position:
    base = Position(
        ticket=Ticket(ticket), kind="position", symbol="EURUSD", side="buy", lots=Decimal(lots), price=Decimal("1.1")
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def execution(number: int, action: str = "open", *, seconds: float = 5, **changes: object) -> Execution:
    now = datetime.now(UTC)
    priorities = {"close": 10, "cancel": 10, "reduce": 20, "modify": 30, "amend": 30}
    base = Execution(
        id=ExecutionId(number), attempt=1, account_id=ACCOUNT, epoch=1, link_id="1", lane=str(number),
        step_id=str(number), after_id=None, action=action, priority=priorities.get(action, 40),  # type: ignore[arg-type]
        symbol="EURUSD", side="buy",
        order_type="market", lots=Decimal("0.50"), target_lots=None, ticket=None, price=None, sl=None, tp=None,
        max_slippage_points=None, master_price=None, expires_at=None, comment="", investigate=False, detected_at=now,
        queued_at=now, send_before=now + timedelta(seconds=seconds),
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


@dataclass
class Desk:
    held: dict[Ticket, Position] = field(default_factory=dict)
    #: every order that reached the broker, in order
    sent: list[Order] = field(default_factory=list)
    filled: dict[ExecutionId, Order] = field(default_factory=dict)
    faults: dict[int, Fault] = field(default_factory=dict)
    #: orders that are refused with this reason
    refusals: dict[int, str] = field(default_factory=dict)
    reads: deque[ReadFault] = field(default_factory=deque)
    read_count: int = 0
    #: reads wait here
    read_gate: asyncio.Event | None = None
    #: orders wait here before they are answered
    gates: dict[int, asyncio.Event] = field(default_factory=dict)
    conclusive: bool = True
    mode: Mode = "hedging"
    at_once: int = 8
    margin: Decimal = Decimal(0)
    #: the login of the terminal
    login: str = "1"
    bucket: RateLimit | None = None
    #: False: market orders with levels are refused, orders with an expiry as well
    obliging: bool = True
    refuses_changes: bool = False
    #: reads of a quote that find none before there is one (None: every symbol has a quote)
    looks_without_quote: int | None = None
    listeners: list["DeskAdapter"] = field(default_factory=list)
    #: whether the push about an order's effect comes before the order's answer
    pushes_own: bool = False
    _before: tuple[Position, ...] = ()

    @property
    def tags(self) -> list[int]:
        return [order.tag for order in self.sent]

    def put(self, now: Position, *, push: bool = True, evidence: Evidence | None = None) -> None:
        """Change the account, as a person or a program could."""
        self._before = tuple(self.held.values())
        if now.lots == 0:
            self.held.pop(now.ticket, None)
        else:
            self.held[now.ticket] = now
        if push:
            for listener in self.listeners:
                listener.push(now, evidence or ("deal" if now.lots == 0 else None))

    def view(self) -> tuple[Position, ...]:
        self.read_count += 1
        match self.reads.popleft() if self.reads else None:
            case "empty":
                return ()
            case "error":
                raise AdapterError("the terminal does not answer")
            case "stale":
                return self._before
            case _:
                return tuple(self.held.values())

    def execute(self, order: Order) -> Placed | Rejected:
        known = self.held.get(order.ticket) if order.ticket is not None else None
        if order.kind not in ("market", "pending") and known is None:
            return Rejected(reason="already_closed", retryable=False)
        self.filled[order.tag] = order
        if known is None:
            made = position(
                f"T{order.tag}", lots=str(order.lots), symbol=order.symbol, side=order.side, sl=order.sl, tp=order.tp,
                tag=order.tag, kind="order" if order.kind == "pending" else "position",
            )  # fmt: skip
        elif order.kind in ("close", "cancel"):
            made = replace(known, lots=max(Decimal(0), known.lots - order.lots))
        else:
            made = replace(known, sl=order.sl, tp=order.tp)
        self.put(made, push=self.pushes_own)
        return Placed(
            lots=order.lots if order.kind in ("market", "close") else Decimal(0),
            price=Decimal("1.1"),
            positions=(made,),
        )


class DeskAdapter:
    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.queue: asyncio.Queue[Change | Exception] = asyncio.Queue()
        self.take_seq: Callable[[], int] = SeqCounter()
        desk.listeners.append(self)

    def push(self, now: Position, evidence: Evidence | None) -> None:
        moment = datetime.now(UTC)
        self.queue.put_nowait(
            Changed(seq=self.take_seq(), position=now, detected_at=moment, unchanged_at=moment, evidence=evidence)
        )

    def resync(self) -> None:
        self.queue.put_nowait(Resync(why="a gap"))

    def lose(self) -> None:
        self.queue.put_nowait(AdapterError("the connection is lost"))

    async def connect(self, login: Login, take_seq: Callable[[], int]) -> AccountState:
        self.take_seq = take_seq
        return await self.account()

    async def close(self) -> None:
        self.desk.listeners.remove(self)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            netting=True, hedging=True, pending_orders=True, close_by=False, retickets=False,
            protected_market_orders=self.desk.obliging, settle=timedelta(milliseconds=20),
            orders_at_once=self.desk.at_once, timed_orders=self.desk.obliging, comment_max=10,
        )  # fmt: skip

    def bucket(self) -> RateLimit | None:
        return self.desk.bucket

    async def account(self) -> AccountState:
        money = Decimal(10_000)
        return AccountState(
            login=self.desk.login, server="desk", currency="USD", mode=self.desk.mode, leverage=100,
            balance=money, equity=money, margin=self.desk.margin, free_margin=money,
        )  # fmt: skip

    async def symbol(self, name: str) -> SymbolSpec | None:
        return None

    async def symbols(self) -> tuple[str, ...]:
        return ("EURUSD",)

    async def quote(self, symbol: str) -> Quote | None:
        if not self.desk.looks_without_quote:
            self.desk.looks_without_quote = None
            return Quote(symbol, Decimal("1.1"), Decimal("1.1001"), datetime.now(UTC))
        self.desk.looks_without_quote -= 1
        return None

    async def positions(self) -> tuple[Position, ...]:
        if self.desk.read_gate is not None:
            await self.desk.read_gate.wait()
        return tuple(each for each in self.desk.view() if each.kind == "position")

    async def orders(self) -> tuple[Position, ...]:
        return tuple(each for each in self.desk.held.values() if each.kind == "order")

    async def changes(self) -> AsyncIterator[Change]:
        while True:
            change = await self.queue.get()
            if isinstance(change, Exception):
                raise change
            yield change

    async def place(self, order: Order) -> Result:
        self.desk.sent.append(order)
        fault = self.desk.faults.pop(order.tag, None)
        if self.desk.looks_without_quote is not None:
            return Rejected(reason="no_quotes", retryable=True)
        if order.kind == "modify" and self.desk.refuses_changes:
            return Rejected(reason="invalid_stops", retryable=False, message="no")
        if order.tag in self.desk.refusals:
            return Rejected(reason=self.desk.refusals[order.tag], retryable=False, message="no")
        if fault == "reject":
            return Rejected(reason="no_money", retryable=True)
        assert order.send_before is not None
        if fault == "slow":
            await asyncio.sleep((order.send_before - datetime.now(UTC)).total_seconds())
        if datetime.now(UTC) >= order.send_before:
            return Rejected(reason="too_late", retryable=False)
        result = Unknown(message="no answer") if fault == "lost" else self.desk.execute(order)
        if fault == "hang":
            await asyncio.Event().wait()
        gate = self.desk.gates.get(order.tag)
        while fault == "deaf" and gate is not None and not gate.is_set():
            with suppress(asyncio.CancelledError):
                await gate.wait()
        if gate is not None:
            await gate.wait()
        if fault == "bare" and isinstance(result, Placed):
            return replace(result, positions=())
        return Unknown(message="no answer") if fault == "executed" else result

    async def find(self, order: Order) -> Found | NotFound:
        filled = self.desk.filled.get(order.tag)
        if filled is None:
            return NotFound(conclusive=self.desk.conclusive)
        ticket = filled.ticket or Ticket(f"T{order.tag}")
        known = self.desk.held.get(ticket)
        return Found(positions=() if known is None else (known,), lots=filled.lots, price=Decimal("1.1"))


@dataclass
class FakeDatabase:
    events: list[Event] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    refuse_events: deque[BackboneRefused] = field(default_factory=deque)
    #: whole calls with this event number are refused as malformed
    poison: set[int] = field(default_factory=set)
    #: a call with more items than this is cut off
    bears: int = 1_000_000
    cut_off: int = 0
    #: the status of an event that is refused: `refused` or `kept`
    refusal: Literal["refused", "kept"] = "refused"
    #: the status of every report
    report_status: Literal["accepted", "kept"] = "accepted"
    #: events of these types are refused, one by one
    refuse_types: set[str] = field(default_factory=set)
    hold_events: asyncio.Event | None = None
    hold_reports: asyncio.Event | None = None

    async def queue_trade_copy(self, account_id: AccountId, epoch: int, events: Sequence[Event]) -> QueueAnswer:
        if self.hold_events is not None:
            await self.hold_events.wait()
        if self.refuse_events:
            raise self.refuse_events.popleft()
        if self.poison & {event.seq for event in events}:
            raise BackboneRefused("TC001", "lots")
        self._measure(len(events))
        self.calls.append(len(events))
        self.events += events
        return QueueAnswer(
            results=tuple(
                EventResult(event_key=f"{e.session}:{e.seq}", status=self.refusal, code="TC401", error="position.lots")
                if e.type in self.refuse_types
                else EventResult(event_key=f"{e.session}:{e.seq}", status="accepted")
                for e in events
            )
        )

    def _measure(self, count: int) -> None:
        if count > self.bears:
            self.cut_off += 1
            raise BackboneCutOff("canceling statement due to statement timeout")

    async def report_executions(self, reports: Sequence[Report]) -> ReportAnswer:
        if self.hold_reports is not None:
            await self.hold_reports.wait()
        self._measure(len(reports))
        self.calls.append(len(reports))
        self.reports += reports
        return ReportAnswer(
            results=tuple(ReportResult(execution_id=r.execution_id, status=self.report_status) for r in reports)
        )

    def outcome(self, number: int) -> str | None:
        """The last outcome reported for an execution, with its reason."""
        told = [report for report in self.reports if report.execution_id == number]
        return None if not told else "/".join(filter(None, (told[-1].outcome, told[-1].reason)))

    def types(self) -> list[str]:
        return [event.type for event in self.events]


def running_lease(seconds: float = 3600) -> Lease:
    lease = Lease()
    lease.renew(boot_time(), seconds * 1000)
    return lease


async def open_session(
    desk: Desk,
    *,
    number: int = 1,
    continues: bool = True,
    epoch: int = 1,
    begins_in: float = 0,
    account: AccountId = ACCOUNT,
) -> AccountSession:
    seq, adapter, now = SeqCounter(), DeskAdapter(desk), DatabaseClock().now()
    await adapter.connect(Login(account_id=account, platform="desk", server="", login="1"), seq)
    return AccountSession(
        account_id=account, epoch=epoch, session=number, continues=continues, adapter=adapter, seq=seq, opened_at=now,
        begins_at=now + timedelta(seconds=begins_in), mode=desk.mode, login=desk.login,
    )  # fmt: skip


def numbers(reports: Iterable[Report]) -> list[int]:
    return [report.execution_id for report in reports]
