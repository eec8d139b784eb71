"""Discrepancies between reads and the book, and when a read is believed. Pure bookkeeping: no clock, no input, no
output."""

from collections.abc import Callable
from dataclasses import dataclass

from agent.account.book import Book, Key, key_of, same_state
from agent.model import Position
from agent.watching.account_read import Read, missing


@dataclass(frozen=True, slots=True)
class _Discrepancy:
    """A state that reads show, and how many in a row."""

    state: Position
    reads: int


class Discrepancies:
    """A new ticket is believed at once. A state that contradicts the book is believed when `reads_to_confirm` reads in
    a row agree."""

    def __init__(self, book: Book, reads_to_confirm: int) -> None:
        self._book = book
        self._reads_to_confirm = reads_to_confirm
        self._pending: dict[Key, _Discrepancy] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def forget(self, key: Key) -> None:
        """A push or report, which is more reliable than a read, has reported this ticket."""
        self._pending.pop(key, None)

    def judge(self, read: Read, may_judge: Callable[[Position], bool]) -> list[Position]:
        """The states of this read (0 lots: gone) that differ from the book and are believed now."""
        earlier, self._pending = self._pending, {}
        believed: list[Position] = []
        for state in [*read, *missing(self._book, read)]:
            key = key_of(state)
            known = self._book.get(key)
            if not may_judge(state) or (known is not None and same_state(known.position, state)):
                continue
            before = earlier.get(key)
            reads = 1 + (before.reads if before is not None and same_state(before.state, state) else 0)
            is_new = state.lots > 0 and not self._book.ever_knew(key)
            if is_new or reads >= self._reads_to_confirm:
                believed.append(state)
            else:
                self._pending[key] = _Discrepancy(state, reads)
        return believed
