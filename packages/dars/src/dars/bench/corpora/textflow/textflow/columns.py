"""Texts side by side, and tables."""

from __future__ import annotations

from .align import align
from .wrap import wrap


def columns(texts: list[str], width: int, gutter: int = 2) -> list[str]:
    """Lines of several texts beside one another in a page of a width."""
    if not texts:
        return []
    each = (width - gutter * (len(texts) - 1)) // len(texts)
    wrapped = [wrap(text, each) for text in texts]
    height = max(len(lines) for lines in wrapped)
    page = []
    for row in range(height):
        cells = [lines[row] if row < len(lines) else "" for lines in wrapped]
        page.append((" " * gutter).join(align(cell, each) for cell in cells).rstrip())
    return page


def is_number(cell: str) -> bool:
    """Whether a cell is to be flush right."""
    digits = cell.removeprefix("-").replace(".", "", 1)
    return bool(digits) and digits.isdecimal()


def table(rows: list[list[str]], header: bool = False, gutter: int = 2) -> list[str]:
    """Rows with columns as wide as their widest cell, numbers flush right."""
    count = max((len(row) for row in rows), default=0)
    full = [row + [""] * (count - len(row)) for row in rows]
    widths = [max(len(row[i]) for row in full) for i in range(count)]
    lines = []
    for number, row in enumerate(full):
        cells = [align(cell, widths[i], "right" if is_number(cell) else "left") for i, cell in enumerate(row)]
        lines.append((" " * gutter).join(cells).rstrip())
        if header and number == 0:
            lines.append("-" * (sum(widths) + gutter * (count - 1)))
    return lines
