"""Runs a scenario: performs its steps as the accounts' humans, and checks expectations once nothing is in flight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import assert_never

from agent.account.book import Key, key_of, replaced_keys
from agent.failure import Failure
from agent.model import Placed, Position, Rejected
from agent.paper.records import Request
from agent.scenario.compare import book_fits, reasons_fit, say_book, say_expected
from agent.scenario.script import (
    Action,
    Cancel,
    ChangeCopier,
    Close,
    CloseBy,
    Comment,
    Drop,
    ExpectBook,
    ExpectDrift,
    ExpectReasons,
    ExpectSent,
    FailOrders,
    FailSnapshots,
    Modify,
    MoveMoney,
    Open,
    Place,
    Protect,
    RemoveCopier,
    Rename,
    Replay,
    Resync,
    Scenario,
    SetPrices,
    SetTrading,
    Step,
)
from agent.scenario.stage import Stage
from agent.testbed.quiescence import Hanging

SETTLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Line:
    """The printed result of one expectation, or of a step that failed."""

    ok: bool
    where: str
    text: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.ok else 'FAILED'} {self.where} {self.text}"


class StepFailed(Exception):
    """A step failed; the rest of its file is not run."""


class Runner:
    """Runs one scenario on its stage. `tell` receives a line per expectation as soon as it is known."""

    def __init__(self, scenario: Scenario, stage: Stage, tell: Callable[[Line], None]) -> None:
        self._scenario = scenario
        self._stage = stage
        self._tell = tell
        self._aliases: dict[tuple[str, str], Key] = {}
        #: the comment of each account's next order
        self._comments: dict[str, str] = {}
        self.failed = 0

    async def run(self) -> bool:
        """True when every expectation was met."""
        for step in self._scenario.steps:
            try:
                await self._step(step)
            except (StepFailed, Hanging) as error:
                what = "still in flight after 10 s: " if isinstance(error, Hanging) else ""
                self._say(step, False, f"{what}{error}")
                return False
        return self.failed == 0

    def _say(self, step: Step, ok: bool, text: str) -> None:
        self.failed += not ok
        self._tell(Line(ok, f"{self._scenario.path}:{step.line}", text))

    async def _step(self, step: Step) -> None:
        match step:
            case Open() | Place() | Close() | Modify() | Cancel() | CloseBy() | Comment():
                await self._act(step)
            case SetPrices(prices=prices):
                await self._stage.set_prices(prices)
            case MoveMoney() | Rename():
                await self._change_account(step)
            case ChangeCopier() | Protect() | RemoveCopier() | Resync() | SetTrading():
                try:
                    await self._set(step)
                except Failure as error:
                    raise error.at(f"{self._scenario.path}:{step.line}") from None
            case FailOrders(account=account, count=count, kind=kind, share=share):
                await self._stage.paper.fault(self._login(account), kind, next_orders=count, share=share)
            case FailSnapshots(account=account, count=count, kind=snapshot):
                await self._stage.paper.fault_snapshot(self._login(account), snapshot, times=count)
            case Drop():
                await self._stage.drop(step)
            case Replay(events=events, account=account):
                await self._stage.replay(account or self._scenario.copiers[0].master, events)
            case ExpectBook() | ExpectReasons() | ExpectDrift() | ExpectSent():
                await self._stage.settle(SETTLE_S)
                await self._expect(step)
            case _:
                assert_never(step)

    async def _change_account(self, step: MoveMoney | Rename) -> None:
        if isinstance(step, Rename):
            for old, new in step.names.items():
                await self._stage.paper.rename(self._login(step.account), old, new)
            return
        for account, amount in step.amounts.items():
            await self._stage.paper.deposit(self._login(account), amount)

    # --- settings of users and operators -----------------------------------------------------------------------

    async def _set(self, step: ChangeCopier | Protect | RemoveCopier | Resync | SetTrading) -> None:
        match step:
            case ChangeCopier(index=index, columns=columns):
                await self._stage.change_copier(index, columns)
            case Protect(account=account, settings=settings):
                await self._stage.protect(account, settings)
            case RemoveCopier(index=index, mode=mode):
                await self._stage.remove_copier(index, mode)
            case Resync(index=index, action=action, max_distance_points=far):
                await self._stage.settle(SETTLE_S)
                await self._stage.resync(index, action, far)
            case SetTrading(state=state):
                await self._stage.set_trading(state)
            case _:
                assert_never(step)

    # --- orders of humans -----------------------------------------------------------------------------------

    def _login(self, account: str) -> str:
        return self._stage.accounts[account].login

    async def _act(self, step: Action) -> None:
        paper, login = self._stage.paper, self._login(step.account)
        match step:
            case Comment(text=text):
                self._comments[step.account] = text
            case Open(side=side, symbol=symbol, lots=lots, sl=sl, tp=tp):
                said = self._comments.pop(step.account, "")
                opened = await paper.market(login, symbol, side, lots, sl=sl or None, tp=tp or None, comment=said)
                self._name(step, opened, step.alias)
            case Place(order_type=order_type, side=side, symbol=symbol, lots=lots, price=price, sl=sl, tp=tp):
                place = paper.limit if order_type == "limit" else paper.stop
                until = None if step.expires_s is None else datetime.now(UTC) + timedelta(seconds=step.expires_s)
                said = self._comments.pop(step.account, "")
                placed = await place(
                    login, symbol, side, lots, price, sl=sl or None, tp=tp or None, expires_at=until, comment=said
                )
                self._name(step, placed, step.alias)
            case Close():
                for held in await self._held(step.account, step.target):
                    self._demand(step, await paper.close_position(login, held.ticket, step.lots))
            case Modify():
                for held in await self._held(step.account, step.target):
                    await self._modify(step, login, held)
            case Cancel():
                for held in await self._held(step.account, step.target):
                    self._demand(step, await paper.cancel(login, held.ticket))
            case CloseBy():
                one, other = [(await self._held(step.account, name))[0] for name in (step.target, step.other)]
                request = Request(kind="close_by", ticket=one.ticket, other_ticket=other.ticket)
                self._demand(step, await paper.submit(login, request))
            case _:
                assert_never(step)

    async def _modify(self, step: Modify, login: str, held: Position) -> None:
        sl = held.sl if step.sl is None else step.sl or None
        tp = held.tp if step.tp is None else step.tp or None
        if held.kind == "order":
            price = step.price or held.price
            until = held.expires_at
            self._demand(
                step, await self._stage.paper.amend(login, held.ticket, price=price, sl=sl, tp=tp, expires_at=until)
            )
        elif step.price is not None:
            raise StepFailed(f"{step.target} is an open position: only a pending order has a price that can be changed")
        else:
            self._demand(step, await self._stage.paper.modify(login, held.ticket, sl=sl, tp=tp))

    def _demand(self, step: Action, result: Placed | Rejected) -> Placed:
        if isinstance(result, Rejected):
            raise StepFailed(f"the broker of {step.account} refused it: {result.reason} {result.message}".rstrip())
        return result

    def _name(self, step: Open | Place, result: Placed | Rejected, alias: str | None) -> None:
        left = [position for position in self._demand(step, result).positions if position.lots]
        if alias is not None and left:
            self._aliases[step.account, alias] = key_of(left[-1])

    async def _held(self, account: str, target: str) -> list[Position]:
        """The positions or orders that `target` names: an alias (also under a later ticket), otherwise all of a
        symbol."""
        book = await self._stage.paper.book(self._login(account))
        everything = [*book.positions, *book.orders]
        named = self._aliases.get((account, target))
        if named is None:
            held = [position for position in everything if position.symbol == target]
        else:
            held = [position for position in everything if named == key_of(position)]
            held = held or [position for position in everything if named in replaced_keys(position)]
            if held:
                self._aliases[account, target] = key_of(held[-1])
        if not held:
            raise StepFailed(f"{account} holds no {target} now")
        return held

    # --- expectations --------------------------------------------------------------------------------------

    async def _expect(self, step: ExpectBook | ExpectReasons | ExpectDrift | ExpectSent) -> None:
        match step:
            case ExpectBook(kind=kind, books=books):
                for name, expected in books.items():
                    view = await self._stage.paper.book(self._login(name))
                    book = view.positions if kind == "position" else view.orders
                    what = "holds" if kind == "position" else "has the orders"
                    self._compare(
                        step, book_fits(expected, book), f"{name} {what}", say_expected(expected), say_book(book)
                    )
            case ExpectReasons(counts=reasons):
                for name, wanted in reasons.items():
                    recorded = await self._stage.reasons(name, wanted)
                    self._compare(step, reasons_fit(wanted, recorded), f"{name} recorded", _say(wanted), _say(recorded))
            case ExpectDrift(index=index, counts=shown):
                drift = await self._stage.drift(index)
                self._compare(step, dict(shown) == drift, f"copier {index} shows", _say(shown), _say(drift))
            case ExpectSent(counts=counts):
                for name, number in counts.items():
                    sent = await self._stage.sent(name)
                    self._compare(step, sent == number, f"{name}'s agent sent", f"{number} orders", f"{sent} orders")
            case _:
                assert_never(step)

    def _compare(self, step: Step, ok: bool, what: str, expected: str, actual: str) -> None:
        self._say(step, ok, f"{what} {expected}" if ok else f"{what}: expected {expected}, is {actual}")


def _say(counts: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items())) + "}"
