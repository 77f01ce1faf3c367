"""Breaking text into lines."""

from __future__ import annotations


def chunks(word: str, width: int) -> list[str]:
    """Pieces of a word that fit; a piece that is not the last ends in a hyphen."""
    pieces = []
    while len(word) > width:
        cut = width - 1 if width > 1 else 1
        pieces.append(word[:cut] + ("-" if width > 1 else ""))
        word = word[cut:]
    pieces.append(word)
    return pieces


def words_of(text: str, width: int, breaks: bool = True) -> list[str]:
    """Words of a text, long ones in pieces."""
    words: list[str] = []
    for word in text.split():
        if breaks and len(word) > width:
            words.extend(chunks(word, width))
        else:
            words.append(word)
    return words


def wrap(text: str, width: int, indent: int = 0, hanging: int = 0, breaks: bool = True) -> list[str]:
    """Lines of at most ``width`` characters; the first begins with ``indent`` blanks, the others with ``hanging``."""
    if width < 1 or max(indent, hanging) >= width:
        raise ValueError(f"nothing fits into {width} columns")
    lines: list[str] = []
    line, blanks = "", indent
    for word in words_of(text, width - max(indent, hanging), breaks):
        if not line:
            line = word
        elif blanks + len(line) + 1 + len(word) <= width:
            line += " " + word
        else:
            lines.append(" " * blanks + line)
            line, blanks = word, hanging
    if line:
        lines.append(" " * blanks + line)
    return lines


def paragraphs(text: str) -> list[str]:
    """Parts that empty lines separate, each as one line."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            parts[-1].append(line.strip())
        elif parts[-1]:
            parts.append([])
    return [" ".join(part) for part in parts if part]


def fill(text: str, width: int, gap: int = 1) -> str:
    """Every paragraph wrapped, ``gap`` empty lines between."""
    blocks = ["\n".join(wrap(part, width)) for part in paragraphs(text)]
    return ("\n" * (gap + 1)).join(blocks)
