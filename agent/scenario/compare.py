"""Compares expected with actual values: a whole book in any order, exact counts of reasons, orders that were sent."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from agent.model import Position
from agent.scenario.script import Holding


def matches(holding: Holding, position: Position) -> bool:
    """Whether every key of `holding` matches; a level of 0 means that there is none."""
    return all(_value(position, key) == wanted for key, wanted in holding.keys.items())


def _value(position: Position, key: str) -> str | Decimal | None:
    match key:
        case "symbol":
            return position.symbol
        case "side":
            return position.side
        case "type":
            return position.order_type
        case "lots":
            return position.lots
        case "price":
            return position.price
        case "sl":
            return position.sl or Decimal(0)
        case "tp":
            return position.tp or Decimal(0)
        case _:
            raise ValueError(f"unknown key {key}")


def book_fits(expected: Sequence[Holding], book: Sequence[Position]) -> bool:
    """Whether every expected holding can be matched with a different position, with none left over."""
    if len(expected) != len(book):
        return False
    fitting = [[n for n, position in enumerate(book) if matches(holding, position)] for holding in expected]
    taken: dict[int, int] = {}
    return all(_assign(n, fitting, taken, set()) for n in range(len(expected)))


def _assign(holding: int, fitting: Sequence[Sequence[int]], taken: dict[int, int], tried: set[int]) -> bool:
    """Match `holding` with a position; earlier matches are moved if they have an alternative (augmenting path)."""
    for position in fitting[holding]:
        if position in tried:
            continue
        tried.add(position)
        if position not in taken or _assign(taken[position], fitting, taken, tried):
            taken[position] = holding
            return True
    return False


def say_expected(expected: Iterable[Holding]) -> str:
    return (
        "[" + ", ".join(" ".join(f"{key} {value}" for key, value in holding.keys.items()) for holding in expected) + "]"
    )


def say_book(book: Iterable[Position]) -> str:
    return "[" + ", ".join(_say(position) for position in book) + "]"


def _say(position: Position) -> str:
    kind = f" {position.order_type}" if position.kind == "order" else ""
    levels = f" sl {position.sl or 0} tp {position.tp or 0}"
    return f"{position.side}{kind} {position.lots} {position.symbol} at {position.price}{levels}"


def reasons_fit(expected: Mapping[str, int], recorded: Mapping[str, int]) -> bool:
    """The named codes exactly this often, and no other."""
    return (
        all(recorded.get(code, 0) == count for code, count in expected.items()) and recorded.keys() <= expected.keys()
    )
