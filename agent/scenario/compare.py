"""Expectations against what is: the whole book in any order, exact counts of reasons, orders that were sent."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from agent.demo.reasons import NOTHING_TO_DO
from agent.model import Position
from agent.scenario.script import Holding


def matches(holding: Holding, position: Position) -> bool:
    """Every key of `holding` fits; a level of 0 means that there is none."""
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
    """Whether each expected holding can be given a position of its own, with none left over."""
    if len(expected) != len(book):
        return False
    fitting = [[n for n, position in enumerate(book) if matches(holding, position)] for holding in expected]
    taken: dict[int, int] = {}
    return all(_assign(n, fitting, taken, set()) for n in range(len(expected)))


def _assign(holding: int, fitting: Sequence[Sequence[int]], taken: dict[int, int], tried: set[int]) -> bool:
    """Give `holding` a position, moving earlier ones to another when they have one (an augmenting path)."""
    for position in fitting[holding]:
        if position in tried:
            continue
        tried.add(position)
        if position not in taken or _assign(taken[position], fitting, taken, tried):
            taken[position] = holding
            return True
    return False


def say_expected(expected: Iterable[Holding]) -> str:
    return "[" + ", ".join(" ".join(f"{key} {value}" for key, value in holding.keys.items()) for holding in expected) + "]"


def say_book(book: Iterable[Position]) -> str:
    return "[" + ", ".join(_say(position) for position in book) + "]"


def _say(position: Position) -> str:
    kind = f" {position.order_type}" if position.kind == "order" else ""
    levels = f" sl {position.sl or 0} tp {position.tp or 0}"
    return f"{position.side}{kind} {position.lots} {position.symbol} at {position.price}{levels}"


def reasons_fit(expected: Mapping[str, int], recorded: Mapping[str, int]) -> bool:
    """The named codes exactly so often, and no other refusal at all; "nothing to do" counts only when it is named."""
    named = all(recorded.get(code, 0) == count for code, count in expected.items())
    return named and not any(count for code, count in recorded.items() if code not in expected and code not in NOTHING_TO_DO)
