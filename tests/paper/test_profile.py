"""A broker's random outcomes: reproducible by seed, and only for programs."""

from collections import Counter
from dataclasses import replace
from decimal import Decimal

from trading import LOGIN, Trading

from agent.paper.broker import Broker
from agent.paper.clocks import VirtualClock
from agent.paper.feed import RandomWalk
from agent.paper.profile import Moods, Profile, share_of
from agent.paper.records import Answer, Request

D = Decimal
MOODY = Profile(
    seed=11,
    latency_ms_min=5,
    latency_ms_max=50,
    slippage_points_max=4,
    reject_rate=0.2,
    requote_rate=0.2,
    partial_rate=0.3,
)


def answers(profile: Profile, count: int = 60) -> list[Answer]:
    trading = Trading(profile=profile, balance=D(1_000_000))
    request = Request(kind="market", origin="expert", symbol="EURUSD", lots=D("0.50"))
    return [trading.broker.submit(LOGIN, request) for _ in range(count)]


def test_equal_seeds_give_equal_outcomes() -> None:
    assert answers(MOODY) == answers(MOODY)


def test_another_seed_gives_other_outcomes() -> None:
    assert answers(MOODY) != answers(replace(MOODY, seed=12))


def test_every_mood_occurs() -> None:
    outcomes = answers(MOODY)
    reasons = Counter(answer.reason for answer in outcomes)
    assert reasons["rejected"]
    assert reasons["requote"]
    filled = {answer.lots for answer in outcomes if answer.status == "done"}
    assert D("0.50") in filled
    assert any(D(0) < lots < D("0.50") for lots in filled)
    prices = {answer.price for answer in outcomes if answer.status == "done"}
    assert min(price for price in prices if price) >= D("1.10006")
    assert max(price for price in prices if price) <= D("1.10014")
    assert len(prices) > 3


def test_a_human_meets_no_moods() -> None:
    trading = Trading(profile=Profile(reject_rate=1, latency_ms_min=100, latency_ms_max=100))
    received = trading.broker.receive(LOGIN, Request(kind="market", symbol="EURUSD", lots=D("0.1")))
    assert received.latency_s == 0
    assert trading.broker.execute(received).status == "done"


def test_moods_go_on_where_a_restart_interrupted_them() -> None:
    whole = Moods(MOODY)
    drawn = [whole.draw() for _ in range(20)]
    assert [Moods(MOODY, drawn=12).draw(), drawn[12]] == [drawn[12]] * 2


def test_orders_per_second_are_limited() -> None:
    outcomes = answers(Profile(orders_per_second_max=3), 5)
    assert [answer.reason for answer in outcomes] == [None, None, None, "too_many_requests", "too_many_requests"]


def test_a_share_keeps_to_the_step_and_the_minimum() -> None:
    assert share_of(D("0.55"), D("0.5"), D("0.1"), D("0.1")) == D("0.2")
    assert share_of(D("0.01"), D("0.5"), D("0.01"), D("0.01")) == D("0.01")


def walked(seed: int) -> list[object]:
    broker = Broker(VirtualClock())
    walk = RandomWalk(broker, seed=seed)
    walk.begin()
    for _ in range(50):
        walk.step()
    return [broker.market.quote("", symbol) for symbol in ("EURUSD", "US30", "BTCUSD")]


def test_the_random_walk_is_reproducible_and_stays_on_the_grid() -> None:
    assert walked(1) == walked(1)
    assert walked(1) != walked(2)
    for quote in walked(5):
        assert quote is not None
        assert quote.ask > quote.bid > 0  # type: ignore[attr-defined]
