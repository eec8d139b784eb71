"""Tables of plain text for people: the first column to the left, figures to the right."""

from collections.abc import Sequence
from typing import Final

GAP: Final = "  "


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of a table under `header`; the first `left` columns are aligned to the left, the others to the right.

    Every row has as many cells as the header. A column is as wide as its longest cell, so nothing is ever cut.
    """
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return GAP.join(padded).rstrip()

    return [line(header), *(line(row) for row in rows)]


def milliseconds(value: object) -> str:
    """A time in ms with the digits that it means: whole from 10 on, tenths below; "–" if it is not known."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 9.95 else f"{value:.1f}"
