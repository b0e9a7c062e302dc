"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

Cells = Sequence[str | int]


def table(header: Sequence[str], rows: Sequence[Cells], *, total: Cells | None = None) -> str:
    """Return a table whose first column is text and whose other columns are numbers."""
    lines = [[str(cell) for cell in row] for row in (header, *rows, *([total] if total else []))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    drawn = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    drawn.insert(1, rule)
    if total:
        drawn.insert(-1, rule)
    return "\n".join(drawn)
