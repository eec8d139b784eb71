"""Limits for texts and names from a broker (docs/protocol.md, Limits): texts are cut, positions with names that are too
long are left out.

Without them the database would refuse a whole call for one long comment, and with it every close in the call.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from agent.model import Position

COMMENT_MAX: Final = 200
TEXT_MAX: Final = 500
NAME_MAX: Final = 64
SYMBOLS_MAX: Final = 10_000


def cut(value: str, most: int = TEXT_MAX) -> str:
    """The first `most` characters, without those that Postgres cannot store: NUL and unpaired surrogates."""
    text = value[:most]
    if text.isascii():
        return text.replace("\0", "") if "\0" in text else text
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def is_name(value: str) -> bool:
    """Whether the database can store this as a symbol or a ticket."""
    return 1 <= len(value) <= NAME_MAX and cut(value, NAME_MAX) == value


def is_known(position: Position) -> bool:
    """Whether the database can store this position."""
    return is_name(position.symbol) and is_name(position.ticket)


def tradable(names: Sequence[str], held: Iterable[str]) -> list[str]:
    """The symbols of an account that are reported: those within the limits, held ones first."""
    first = [name for name in dict.fromkeys(held) if is_name(name)]
    others = [name for name in dict.fromkeys(names) if is_name(name)]
    return list(dict.fromkeys((*first, *others)))[:SYMBOLS_MAX]
