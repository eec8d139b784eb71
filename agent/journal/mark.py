"""A mark beside the journal: a small file that names the order that was begun last.

SQLite silently treats a write-ahead log with a damaged or missing end as a shorter one. The orders in the lost part
would then count as never sent. With the mark this is detected: a journal without the marked order has lost its end.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

SIZE: Final = 64


class LastBegun:
    """The mark's file, open as long as the journal. Every method may raise `OSError`."""

    def __init__(self, journal: Path) -> None:
        path = journal.with_name(f"{journal.name}-last")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        #: (execution, attempt), or None without a mark. An unreadable mark becomes (0, 0), which no journal knows
        self.order: tuple[int, int] | None = (0, 0)
        with contextlib.suppress(ValueError):
            self.order = _parse(os.read(self._file, SIZE))

    def note(self, execution_id: int, attempt: int) -> None:
        """Set the mark, after the row of this attempt was committed and before its order is sent."""
        self.order = (execution_id, attempt)
        self.write_again()

    def clear(self) -> None:
        self.order = None
        self.write_again()

    def write_again(self) -> None:
        text = "" if self.order is None else "{} {}".format(*self.order)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, f"{text}\n".encode("ascii").ljust(SIZE))

    def close(self) -> None:
        os.close(self._file)


def _parse(content: bytes) -> tuple[int, int] | None:
    words = content.decode("ascii").split()
    if not words:
        return None
    execution_id, attempt = words
    return int(execution_id), int(attempt)
