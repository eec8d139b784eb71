"""How both outboxes deliver: batches, halves, retries."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import pytest

from agent.control_plane.contract import BackboneCutOff, BackboneRefused
from agent.control_plane.delivery import Delivery


class Route:
    """Items are pairs of a key and a version. Calls fail or are refused as the test sets it."""

    name = "items"

    def __init__(self, *, in_order: bool = False) -> None:
        self.in_order = in_order
        self.calls: list[list[tuple[str, int]]] = []
        self.done: list[tuple[str, int]] = []
        self.given_up: list[tuple[str, int]] = []
        self.failures: list[Exception] = []
        self.malformed: set[str] = set()
        self.code = "TC001"
        self.give_up_after = 1_000
        self.most: int | None = None
        self.during_call: Callable[[], None] = lambda: None

    def key(self, item: tuple[str, int]) -> str:
        return item[0]

    def select(self, waiting: Iterable[tuple[str, int]], limit: int) -> list[tuple[str, int]]:
        return list(waiting)[:limit]

    async def call(self, batch: Sequence[tuple[str, int]]) -> str:
        self.calls.append(list(batch))
        await asyncio.sleep(0)
        self.during_call()
        if self.failures:
            raise self.failures.pop(0)
        if self.most is not None and len(batch) > self.most:
            raise BackboneCutOff("canceling statement due to statement timeout")
        if any(key in self.malformed for key, _ in batch):
            raise BackboneRefused(self.code, "lots: a number is wanted")
        return "answer"

    async def accepted(self, batch: Sequence[tuple[str, int]], answer: str) -> None:
        assert answer == "answer"
        self.done += batch

    def refused(self, item: tuple[str, int], error: BackboneRefused) -> None:
        assert error.code == self.code
        self.given_up.append(item)

    def failed(self, batch: Sequence[tuple[str, int]], error: Exception) -> float:
        if len(self.calls) >= self.give_up_after:
            raise TimeoutError("still refused")
        if isinstance(error, BackboneRefused) and error.concerns_account and self.give_up_after == 1_000:
            raise error
        return 0


def filled(route: Route, keys: str, largest_batch: int = 10) -> Delivery[tuple[str, int], str]:
    delivery = Delivery[tuple[str, int], str](route, largest_batch)
    for key in keys:
        delivery.put((key, 1))
    return delivery


def keys(items: Iterable[tuple[str, int]]) -> str:
    return "".join(key for key, _ in items)


async def test_goes_in_order_and_in_batches() -> None:
    route = Route()
    await filled(route, "abcde", largest_batch=2).run()
    assert [keys(call) for call in route.calls] == ["ab", "cd", "e"]
    assert keys(route.done) == "abcde"


async def test_what_arrives_during_a_call_goes_with_the_next() -> None:
    route = Route()
    delivery = filled(route, "ab")
    late = list("cd")

    def add() -> None:
        while late:
            delivery.put((late.pop(0), 1))

    route.during_call = add
    await delivery.run()
    assert [keys(call) for call in route.calls] == ["ab", "cd"]


async def test_counts_what_has_no_answer_yet() -> None:
    route = Route()
    delivery = filled(route, "ab")
    seen: list[tuple[int, int]] = []
    route.during_call = lambda: seen.append((delivery.pending, delivery.sending))
    assert delivery.pending == 2
    await delivery.run()
    assert seen == [(2, 2)]
    assert delivery.pending == 0


async def test_one_malformed_item_is_given_up_and_the_others_are_accepted() -> None:
    route = Route()
    route.malformed = {"c"}
    await filled(route, "abcde").run()
    assert keys(route.done) == "abde"
    assert keys(route.given_up) == "c"


@pytest.mark.covers("R25")
@pytest.mark.parametrize("code", ["22P05", "22021", "22003", "23514", "23502", "TC001", "HTTP 413"])
async def test_a_refusal_about_an_entry_is_halved_in_order_down_to_the_culprit(code: str) -> None:
    route = Route(in_order=True)
    route.malformed = {"c"}
    route.code = code
    await filled(route, "abcdefgh").run()
    assert keys(route.done) == "abdefgh"
    assert keys(route.given_up) == "c"


@pytest.mark.covers("R25")
@pytest.mark.parametrize(
    "code", ["401", "HTTP 401", "42501", "429", "HTTP 429", "TC101", "TC104", "TC110", "40002", "54000", "P0001", "22"]
)
async def test_a_refusal_about_the_caller_is_never_halved(code: str) -> None:
    route = Route(in_order=True)
    route.malformed = {"c"}
    route.code = code
    route.give_up_after = 3
    with pytest.raises(TimeoutError, match="still refused"):
        await filled(route, "abcdefgh").run()
    assert [keys(call) for call in route.calls] == ["abcdefgh"] * 3
    assert route.given_up == []


async def test_a_batch_that_is_cut_off_goes_in_halves_and_the_next_are_smaller() -> None:
    route = Route()
    route.most = 2
    await filled(route, "abcdefghijkl", largest_batch=8).run()
    assert keys(route.done) == "abcdefghijkl"
    assert len(route.calls[0]) == 8
    assert max(len(call) for call in route.calls if "i" in keys(call)) < 8


@pytest.mark.parametrize(("in_order", "expected"), [(True, ["ab", "ab", "cd"]), (False, ["ab", "cd", "ab"])])
async def test_a_failed_batch_is_repeated(in_order: bool, expected: list[str]) -> None:
    route = Route(in_order=in_order)
    route.failures = [RuntimeError("the network is gone")]
    await filled(route, "abcd", largest_batch=2).run()
    assert [keys(call) for call in route.calls] == expected
    assert sorted(keys(route.done)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("in_order", [True, False])
async def test_a_newer_item_with_the_same_key_replaces_one_that_failed(in_order: bool) -> None:
    route = Route(in_order=in_order)
    route.failures = [RuntimeError("the network is gone")]
    delivery = filled(route, "a")
    newer = [("a", 2)]

    def replace() -> None:
        while newer:
            delivery.put(newer.pop())

    route.during_call = replace
    await delivery.run()
    assert route.done == [("a", 2)]


async def test_a_newer_item_moves_to_the_end() -> None:
    route = Route()
    delivery = filled(route, "abc")
    delivery.put(("a", 2))
    assert delivery.waiting == (("b", 1), ("c", 1), ("a", 2))
    delivery.put_first([("z", 1), ("c", 0)])
    assert delivery.waiting == (("z", 1), ("c", 1), ("b", 1), ("a", 2))


async def test_a_refusal_of_the_account_ends_the_delivery() -> None:
    route = Route()
    route.failures = [BackboneRefused("TC103", "not assigned")]
    delivery = filled(route, "ab")
    with pytest.raises(BackboneRefused, match="TC103"):
        await delivery.run()
    assert delivery.sending == 0
