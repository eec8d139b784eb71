"""The rate limit of one connection (X15): which order is next when several wait."""

import asyncio
from dataclasses import dataclass, field
from decimal import Decimal

import pytest

from agent.model import AccountId, ExecutionId, Order
from agent.platforms.rate_limit import RateLimit


@dataclass
class Line:
    """A rate limit on a clock that the test moves, and the orders that it let through."""

    now: float = 100.0
    sent: list[str] = field(default_factory=list)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bucket = RateLimit(10, now=lambda: self.now)

    async def ask(self, account: str, kind: str, name: str) -> None:
        async def wait() -> None:
            order = Order(tag=ExecutionId(1), kind=kind, symbol="EURUSD", side="buy", lots=Decimal(1))  # type: ignore[arg-type]
            await self.bucket.take(AccountId(account), order)
            self.sent.append(name)

        self.tasks.append(asyncio.create_task(wait()))
        await asyncio.sleep(0)

    async def pass_time(self, seconds: float) -> None:
        """In steps of one token, as the rate limit's own timer would wake it."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.bucket._serve()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def line() -> Line:
    line = Line()
    await line.ask("A", "market", "first")  # takes the only token that was saved up
    await asyncio.sleep(0)
    assert line.sent == ["first"]
    line.sent.clear()
    return line


@pytest.mark.covers("X15")
async def test_closes_go_ahead_of_opens_and_opens_ahead_of_changes(line: Line) -> None:
    for kind in ("amend", "modify", "pending", "market", "close", "cancel"):
        await line.ask("A", kind, kind)
    await line.pass_time(0.6)
    assert line.sent[:2] in (["close", "cancel"], ["cancel", "close"])
    assert set(line.sent[2:4]) == {"market", "pending"}
    assert set(line.sent[4:]) == {"modify", "amend"}


@pytest.mark.covers("X15")
async def test_sixty_followers_on_one_connection_take_turns_and_none_starves(line: Line) -> None:
    for number in range(20):
        await line.ask("greedy", "market", f"greedy-{number}")
    for number in range(59):
        await line.ask(f"F{number}", "market", f"F{number}")
    await line.pass_time(6.0)
    assert {f"F{number}" for number in range(59)} <= set(line.sent)
    assert sum(name.startswith("greedy") for name in line.sent) <= 1
    await line.end()


@pytest.mark.covers("X15")
async def test_many_closes_do_not_delay_a_change_for_ever(line: Line) -> None:
    await line.ask("B", "modify", "change")
    for number in range(100):
        await line.ask("A", "close", f"close-{number}")
        await line.pass_time(0.1)
        if "change" in line.sent:
            break
    assert 5 < number < 40
    await line.end()


async def test_no_more_than_the_rate_is_let_through(line: Line) -> None:
    for number in range(50):
        await line.ask("A", "market", str(number))
    await line.pass_time(2.0)
    assert 19 <= len(line.sent) <= 20
    await line.end()


async def test_a_cancelled_wait_uses_up_no_turn(line: Line) -> None:
    await line.ask("A", "close", "given up")
    await line.ask("B", "market", "next")
    line.tasks[-2].cancel()
    await line.pass_time(0.1)
    assert line.sent == ["next"]


async def test_on_the_real_clock_it_wakes_by_itself() -> None:
    bucket = RateLimit(200)
    order = Order(tag=ExecutionId(1), kind="market", symbol="EURUSD", side="buy", lots=Decimal(1))
    async with asyncio.timeout(5):
        await asyncio.gather(*(bucket.take(AccountId("A"), order) for _ in range(20)))


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (5, 0)])
def test_a_rate_of_nothing_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="over 0"):
        RateLimit(rate, burst)
