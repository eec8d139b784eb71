"""What reads say against the book, and when it is believed. Pure bookkeeping: no clock, no input, no output."""

from collections.abc import Callable
from dataclasses import dataclass

from agent.book import Book, Key, key_of, same_state
from agent.model import Position
from agent.reading import Read, missing


@dataclass(frozen=True, slots=True)
class _Doubt:
    """What reads say, and how often in a row."""

    state: Position
    reads: int


class Doubts:
    """A ticket never heard of is believed at once; what contradicts the book when `reads_to_confirm` reads in a row agree."""

    def __init__(self, book: Book, reads_to_confirm: int) -> None:
        self._book = book
        self._reads_to_confirm = reads_to_confirm
        self._doubts: dict[Key, _Doubt] = {}

    def __len__(self) -> int:
        return len(self._doubts)

    def forget(self, key: Key) -> None:
        """Something better than a read has spoken of it."""
        self._doubts.pop(key, None)

    def judge(self, read: Read, may_judge: Callable[[Position], bool]) -> list[Position]:
        """The states of this read (lots 0: gone) that are news and are believed now."""
        earlier, self._doubts = self._doubts, {}
        believed: list[Position] = []
        for state in [*read, *missing(self._book, read)]:
            key = key_of(state)
            known = self._book.get(key)
            if not may_judge(state) or (known is not None and same_state(known.position, state)):
                continue
            before = earlier.get(key)
            reads = 1 + (before.reads if before is not None and same_state(before.state, state) else 0)
            is_news = state.lots > 0 and not self._book.ever_knew(key)
            if is_news or reads >= self._reads_to_confirm:
                believed.append(state)
            else:
                self._doubts[key] = _Doubt(state, reads)
        return believed
